"""A record as tables for people."""

from typing import Any

from tesseral.bench.offload.cases import OFFLOADING, OURS

Table = tuple[list[str], list[list[str]]]


def rates(record: dict[str, Any]) -> Table:
    """Return how fast the host's memory is read, and by whom."""
    found = record["rates"]
    rows = [[name, f"{rate / 1e9:.1f}"] for name, rate in found.items() if name != "threads"]
    return [f"who, on {found['threads']} threads", "GB/s"], rows


def decoding(record: dict[str, Any]) -> Table:
    """Return the steps of each side."""
    rows = []
    sides = record["decode"].get("sides", {OURS: record["decode"]})
    if "peer" in record:
        sides = sides | {OFFLOADING: record["peer"]}
    for name, side in record.get("turns", {}).get("sides", {}).items():
        sides = sides | {f"two sequences of half the context, {name}": side}
    for name, side in sides.items():
        if "refused" in side:
            rows.append([name, f"refused: {side['refused'][:60]}", "", "", ""])
            continue
        rows.append(
            [
                name,
                f"{side['tokens_per_s']:.2f}",
                f"{1e3 * side['median_s']:.1f}",
                _gb(side.get("reserved_bytes")),
                str(side.get("passing_tokens", "")),
            ]
        )
    return ["side", "tokens/s", "ms a token", "device memory", "tokens that pass"], rows


def prompts(record: dict[str, Any]) -> Table:
    """Return what reading prompts took."""
    rows = []
    for name in ("prefill", "million"):
        if "memory" in record.get(name, {}):
            part = record[name]
            memory = part["memory"]
            rows.append(
                [
                    f"{memory['context']} tokens, {memory['key_bits']} bits",
                    f"{len(memory['host_layers'])} of {memory['n_layers']}",
                    f"{part['prefill_s']:.1f}",
                    f"{part['tokens_per_s']:.0f}",
                    _gb(part.get("reserved_bytes")),
                    f"{part['decode']['tokens_per_s']:.2f}",
                ]
            )
    columns = ["context", "layers on the host", "s", "tokens/s", "device memory", "decoded a s"]
    return columns, rows


def bars(record: dict[str, Any]) -> Table:
    """Return what must hold."""
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


def _gb(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f} GB"
