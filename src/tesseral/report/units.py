"""Sizes, times, bit widths and machines in words."""

from collections.abc import Callable, Mapping
from typing import Any

from tesseral.quantization.config import QuantizationConfig


def bytes_text(count: float) -> str:
    """Return a number of bytes in decimal units: 864 B, 4.4 kB, 10.9 MB, 1.2 GB."""
    if count < 1e3:
        return f"{count:.0f} B"
    for factor, unit in ((1e3, "kB"), (1e6, "MB")):
        if count < 999.95 * factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"


def seconds_text(seconds: float) -> str:
    """Return a time: 0.4 s, 62 s, 3 min 5 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def bits_text(config: QuantizationConfig) -> str:
    """Return the widths of a configuration: W4A4KV4, or W4A4K4V2 where keys and values differ."""
    keys, values = config.cache_bits
    cache = f"KV{keys}" if keys == values else f"K{keys}V{values}"
    return f"W{config.weight_bits}A{config.activation_bits}{cache}"


def caches_text(caches: Mapping[str, Any]) -> str:
    """Return the sizes of caches, each with the number of cores that share it."""
    words = [
        f"{level} {caches[level] / 2**10:.0f} KiB / {caches[f'{level}_cores']}"
        for level in ("l1d", "l2", "l3")
        if caches[level]
    ]
    return f"{', '.join(words)} cores (from {caches['source']})"


def value_text(value: Any) -> str:
    """Return a plain value as a person reads it: ``not set``, ``none``, or words with commas."""
    if isinstance(value, Mapping):
        words = [f"{name} {value_text(entry)}" for name, entry in value.items()]
        return ", ".join(words) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value)) or "none"
    return "not set" if value is None else str(value)


def machine_rows(machine: Mapping[str, Any]) -> list[list[str]]:
    """Return a machine record as rows of a table: what, and its value in words."""
    words: dict[str, Callable[[Any], str]] = {"caches": caches_text, "memory_bytes": bytes_text}
    return [
        [name, value_text(value) if value is None else words.get(name, value_text)(value)]
        for name, value in machine.items()
    ]
