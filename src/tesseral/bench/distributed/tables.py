"""A record of several ranks as rows of text and as pictures."""

from typing import Any

Table = tuple[list[str], list[list[str]]]

ROLES = {
    "attention": "none",
    "product": "hadamard",
    "computing": "hadamard",
    "sum": "flatquant",
    "copy": "ours",
    "wait": "ink",
    "other": "grid",
}


def time_table(record: dict[str, Any]) -> Table:
    """Return columns and rows: times of every case, and what was predicted."""
    columns = ["layer", "tokens", "plain, ms", "computing, ms", "exposed, us", "ours, ms"]
    columns += ["hidden", "times plain", "tiles", "through", "predicted ours, ms"]
    return columns, [_times(row) for row in record["rows"]]


def _times(row: dict[str, Any]) -> list[str]:
    plan = row["plan"]
    tiles, strips = plan["tiles"], plan["strips"]
    words = f"{len(tiles)}, first {tiles[0]}" if len(tiles) > 1 else "1"
    if len(strips) > 1:
        words += f"; {len(strips)} strips"
    plain = len(tiles) == 1 and plan["through"] == "group"
    return [
        row["kind"],
        str(row["length"]),
        f"{1e3 * row['plain_s']:.3f}",
        f"{1e3 * row['compute_s']:.3f}",
        f"{1e6 * row['exposed_s']:.0f}",
        f"{1e3 * row['ours_s']:.3f}",
        "plain" if plain else f"{row['hidden']:.0%}",
        f"{row['ratio']:.3f}",
        words,
        plan["through"],
        f"{1e3 * row['predicted_s']['ours']:.3f}",
    ]


def forecast_table(record: dict[str, Any]) -> Table:
    """Return columns and rows: what the cost model predicts of more ranks."""
    rows = [
        [
            row["kind"],
            str(row["length"]),
            str(cast["ranks"]),
            f"{1e3 * cast['plain_s']:.3f}",
            f"{1e3 * cast['compute_s']:.3f}",
            f"{1e3 * cast['ours_s']:.3f}",
            f"{cast['hidden']:.0%}",
            str(len(cast["plan"]["tiles"])),
            cast["plan"]["through"],
        ]
        for row in record["rows"]
        for cast in row["forecasts"]
    ]
    columns = ["layer", "tokens", "ranks", "plain, ms", "computing, ms", "ours, ms", "hidden"]
    return [*columns, "tiles", "through"], rows


def bar_table(record: dict[str, Any]) -> Table:
    """Return columns and rows: what must hold."""
    rows = [
        [
            row["kind"],
            str(row["length"]),
            bar["what"],
            f">= {bar['at_least']:g}",
            f"{bar['measured']:.3f}",
            "yes" if bar["met"] else "NO",
        ]
        for row in record["rows"]
        for bar in row["bars"]
    ]
    return ["layer", "tokens", "what", "needed", "found", "holds"], rows


def other_table(record: dict[str, Any]) -> Table:
    """Return columns and rows: plans that were not chosen, as times of the plain sequence."""
    rows = [
        [row["kind"], str(row["length"]), name, f"{1e3 * s:.3f}", f"{row['plain_s'] / s:.3f}"]
        for row in record["rows"]
        for name, s in row["others_s"].items()
    ]
    return ["layer", "tokens", "plan", "ms", "times plain"], rows


def chart(record: dict[str, Any]) -> bytes:
    """Return a PNG image of the timelines."""
    from tesseral.report.charts import Span, timelines_png

    panels = {}
    for line in record["timelines"]:
        spans = [
            Span(
                row=span["lane"],
                kind=span["kind"],
                start=span["start_us"] / 1e3,
                end=span["end_us"] / 1e3,
            )
            for span in sorted(line["spans"], key=lambda span: (span["lane"], span["start_us"]))
        ]
        panels[f"{line['side']}, {line['length']} tokens, rank 0"] = spans
    used = {span.kind for spans in panels.values() for span in spans}
    roles = {kind: role for kind, role in ROLES.items() if kind in used}
    return timelines_png(panels, roles, xlabel="milliseconds")
