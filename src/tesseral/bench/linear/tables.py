"""The record as rows of text, and as a picture."""

from typing import Any

from tesseral.bench.linear.cases import READ
from tesseral.report.charts import Bar, bars_png


def time_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: every side's time, and shares of ceilings."""
    rows = []
    for row in record["rows"]:
        for name, timing in row["timings"].items():
            if name == READ:
                continue
            shares = row["shares"] if name == "ours" else {}
            rows.append(
                [
                    row["name"],
                    name,
                    f"{1e3 * timing['median_s']:.3f}",
                    f"{100 * timing['spread']:.0f}%",
                    f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "",
                    ", ".join(f"{100 * share:.0f}% of {what}" for what, share in shares.items()),
                ]
            )
    return ["case", "side", "ms", "spread", "ours is faster by", "share"], rows


def bar_rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows: what must hold."""
    rows = [
        [
            row["name"],
            bar["against"],
            f"{bar['measured']:.2f}",
            f">= {bar['at_least']:g}",
            "yes" if bar["met"] else "NO",
        ]
        for row in record["rows"]
        for bar in row["bars"]
    ]
    return ["case", "against", "found", "needed", "holds"], rows


def chart(record: dict[str, Any]) -> bytes:
    """Return a PNG image: how many times faster ours is than each side."""
    bars = []
    for row in record["rows"]:
        for i, (name, ratio) in enumerate(row["ratios"].items()):
            ms = 1e3 * row["timings"]["ours"]["median_s"]
            text = f"{ratio:.2f}x {name} ({ms:.3g} ms)"
            role = "ours" if ratio >= 1 else "peer"
            bars.append(Bar(label="" if i else row["name"], text=text, value=ratio, role=role))
    machine = f"{record['machine']['cpu']}, {record['threads']} threads"
    return bars_png(f"Linear layers on {machine}", bars, xlabel="times faster than the other side")
