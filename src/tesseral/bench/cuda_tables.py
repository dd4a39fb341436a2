"""Records of what was measured on a CUDA device, as rows of text and as pictures."""

from typing import Any

from tesseral.bench.llm.cuda_names import FP16, FUSED, PLAIN, UNFUSED
from tesseral.report.charts import Bar, bars_png

Table = tuple[list[str], list[list[str]]]


def linear_times(record: dict[str, Any]) -> Table:
    """Return columns and rows: every side's time of every case."""
    rows = []
    for row in record["rows"]:
        for name, timing in row["timings"].items():
            ratio = row["ratios"].get(name)
            rows.append(
                [
                    row["name"],
                    name,
                    f"{1e6 * timing['median_s']:.1f}",
                    f"{100 * timing['spread']:.0f}%",
                    "" if ratio is None else f"{ratio:.2f}",
                ]
            )
    return ["case", "side", "us", "spread", "times as fast as the peer"], rows


def linear_bars(record: dict[str, Any]) -> Table:
    """Return columns and rows: what must hold of linear layers."""
    rows = [
        [
            row["name"],
            bar["side"],
            bar["against"],
            f"{bar['measured']:.2f}",
            f">= {bar['at_least']:g}",
            "yes" if bar["met"] else "NO",
        ]
        for row in record["rows"]
        for bar in row["bars"]
    ]
    return ["case", "side", "against", "found", "needed", "holds"], rows


def linear_chart(record: dict[str, Any]) -> bytes:
    """Return a PNG image: how many times as fast as its peer each side is."""
    bars = []
    for row in record["rows"]:
        for i, (name, ratio) in enumerate(row["ratios"].items()):
            us = 1e6 * row["timings"][name]["median_s"]
            role = "ours" if name.startswith("ours") else "peer"
            text = f"{ratio:.2f}x {name} ({us:.3g} us)"
            bars.append(Bar(label="" if i else row["name"], text=text, value=ratio, role=role))
    return bars_png(f"Linear layers on {record['device']}", bars, xlabel="times as fast")


def llm_times(record: dict[str, Any]) -> Table:
    """Return columns and rows: every side's time and memory."""
    rows = []
    for what, sides in record["timings"].items():
        for name, timing in sides.items():
            rows.append(
                [
                    what,
                    name,
                    f"{1e3 * timing['median_s']:.3f}",
                    f"{100 * timing['spread']:.0f}%",
                    f"{sides[FP16]['median_s'] / timing['median_s']:.2f}",
                    f"{record['memory'][name][what] / 1e9:.2f}",
                ]
            )
    return ["what", "side", "ms", "spread", "times as fast as fp16", "GB at most"], rows


def llm_bars(record: dict[str, Any]) -> Table:
    """Return columns and rows: what must hold of a model."""
    rows = [
        [
            bar["name"],
            f"{bar['value']:.2f}",
            f"{'<=' if bar['below'] else '>='} {bar['limit']:.2f}",
            "yes" if bar["holds"] else "NO",
        ]
        for bar in record["bars"]
    ]
    return ["what", "found", "needed", "holds"], rows


def llm_chart(record: dict[str, Any]) -> bytes:
    """Return a PNG image: how many times as fast as float16 a model is, by its parts."""
    roles = {FP16: "peer", PLAIN: "none", UNFUSED: "hadamard", FUSED: "ours"}
    bars = []
    for what, sides in record["timings"].items():
        for i, (name, role) in enumerate(roles.items()):
            ratio = sides[FP16]["median_s"] / sides[name]["median_s"]
            text = f"{ratio:.2f}x {name} ({1e3 * sides[name]['median_s']:.3g} ms)"
            bars.append(Bar(label="" if i else what, text=text, value=ratio, role=role))
    layers = record["plan"]["layers"]
    title = f"A model of {layers} blocks, W4A4KV4, on {record['device']}"
    return bars_png(title, bars, xlabel="times as fast as float16")
