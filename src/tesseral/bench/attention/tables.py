"""A record as tables in words."""

from collections.abc import Iterator

from tesseral.bench.attention.cases import OURS, READ
from tesseral.bench.attention.record import AttentionRecord, RowRecord
from tesseral.bench.timing import Timing
from tesseral.report.units import bytes_text

Table = tuple[list[str], list[list[str]]]
"""Columns and rows, in words."""

MISSED, BEYOND = "NO", "NO: beyond this machine"


def main_table(record: AttentionRecord) -> Table:
    """Return what must hold and what was measured, one line for each bar.

    The last column but one is what the bar's ratio would be at the ceiling of this machine.
    """
    columns = ["case", "against", "at least", "measured", "at the ceiling", "met"]
    lines = [line for row in record.rows for line in _bar_lines(row)]
    memory = record.memory
    if memory is not None:
        extra = "unknown" if memory.extra_bytes is None else _mib(memory.extra_bytes)
        bound = f"at most {_mib(memory.at_most)}"
        lines.append([memory.case.name, "peak extra memory", bound, extra, "", _word(memory.met)])
    return columns, lines


def peers_table(record: AttentionRecord) -> Table:
    """Return times, their spread, rates and memory of everybody in every case."""
    columns = ["case", "who", "time", "spread", "rate", "of ceiling", "extra memory"]
    lines = []
    for row in record.rows:
        for who, timing in {f"{OURS} ({row.backend})": row.ours, **row.peers}.items():
            extra = row.extra_bytes.get(OURS if timing is row.ours else who)
            ourselves = who.startswith("our ")  # another case, so that bytes are not those here
            lines.append(
                [
                    row.case.name if timing is row.ours else "",
                    who,
                    time_text(timing.median_s),
                    f"{timing.spread:.1%}",
                    "" if ourselves else rate_text(row, timing),
                    "" if ourselves else f"{row.rate(timing) / row.ceiling:.0%}",
                    "" if extra is None else bytes_text(extra),
                ]
            )
    return columns, lines


def ceilings_table(record: AttentionRecord) -> Table:
    """Return what the machine could do at most, by target."""
    ceilings = record.ceilings
    columns = ["target", "FMA fp32", "vdpbf16ps", "vpdpbusd"]
    lines = []
    for target, rates in ceilings.products.items():
        kinds = (("fma_fp32", "GFLOP/s"), ("dot_bf16", "GFLOP/s"), ("dot_int8", "GOP/s"))
        cells = [
            f"{rates[kind] / 1e9:.0f} {unit}" if kind in rates else "-" for kind, unit in kinds
        ]
        lines.append([target, *cells])
    return columns, lines


def ablation_table(record: AttentionRecord) -> Table:
    """Return what each part is worth."""
    columns = ["instead", "case", "ours", "without", "times slower"]
    lines = [
        [
            entry.name,
            entry.case.name,
            time_text(entry.ours.median_s),
            time_text(entry.without.median_s),
            f"{entry.factor:.2f}x",
        ]
        for entry in record.ablations
    ]
    return columns, lines


def slower_table(record: AttentionRecord) -> Table:
    """Return the shapes of the grid on which we are slower, the worst first."""
    columns = ["shape", "backend", "ours", "peer", "theirs", "ratio"]
    slower = sorted((s for s in record.shapes if s.slower), key=lambda shape: shape.ratio)
    lines = [
        [
            shape.case.name,
            shape.backend,
            time_text(shape.ours.median_s),
            shape.peer,
            time_text(shape.theirs.median_s),
            f"{shape.ratio:.2f}x",
        ]
        for shape in slower
    ]
    return columns, lines


def verdict(record: AttentionRecord) -> str:
    """Return in one line how many bars are met."""
    met = [bar.met for row in record.rows for bar in row.bars]
    if record.memory is not None:
        met.append(record.memory.met)
    beyond = sum(not (bar.met or bar.possible) for row in record.rows for bar in row.bars)
    words = f"{sum(met)} of {len(met)} met"
    if beyond:
        words += f", {beyond} beyond what this machine could do at most"
    return words if record.memory is not None else f"{words}; peak memory not measured"


def time_text(seconds: float) -> str:
    """Return a time with three digits: 3.21 s, 45.6 ms, 7.89 us."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def rate_text(row: RowRecord, timing: Timing) -> str:
    """Return what a side does in a second."""
    unit = "GB/s" if row.case.decoding else "GFLOP/s"
    return f"{row.rate(timing) / 1e9:.3g} {unit}"


def _bar_lines(row: RowRecord) -> Iterator[list[str]]:
    name = row.case.name
    for bar in row.bars:
        numbers = (bar.at_least, bar.measured, bar.at_ceiling)
        if bar.against == READ:
            told = [f"{number:.0%}" for number in numbers]
        else:
            told = [f"{number:.3g}x" for number in numbers]
        yield [name, bar.against, *told, _word(bar.met, possible=bar.possible)]
        name = ""


def _mib(count: int) -> str:
    return f"{count / 2**20:.0f} MiB"


def _word(met: bool, *, possible: bool = True) -> str:
    return "yes" if met else MISSED if possible else BEYOND
