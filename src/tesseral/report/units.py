"""Sizes, times and bit widths in words."""

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
