"""The table as a picture: how much of this machine each side uses."""

from tesseral.bench.attention.cases import OURS
from tesseral.bench.attention.record import AttentionRecord, RowRecord
from tesseral.bench.attention.tables import rate_text
from tesseral.report.charts import Bar, bars_png


def chart(record: AttentionRecord) -> bytes:
    """Return a PNG image with two bars for each case: the best peer's, then ours."""
    rows = [bar for row in record.rows for bar in _bars(row)]
    machine = f"{record.machine['cpu']}, {record.ceilings.threads} threads"
    return bars_png(
        f"Attention on {machine}", rows, xlabel="of what this machine could do at most, %"
    )


def _bars(row: RowRecord) -> list[Bar]:
    others = [name for name in row.peers if not name.startswith("our ")]
    drawn = []
    if others:
        best = min(others, key=lambda name: row.peers[name].median_s)
        theirs = row.peers[best]
        share = 100 * row.rate(theirs) / row.ceiling
        text = f"{best}: {rate_text(row, theirs)}"
        drawn.append(Bar(label=row.case.name, text=text, value=share, role="peer"))
    said = ", ".join(
        f"{theirs.median_s / row.ours.median_s:.3g}x {name}" for name, theirs in row.peers.items()
    )
    share = 100 * row.rate(row.ours) / row.ceiling
    text = f"{OURS}: {rate_text(row, row.ours)}, {said}"
    label = "" if drawn else row.case.name
    return [*drawn, Bar(label=label, text=text, value=share, role="ours")]
