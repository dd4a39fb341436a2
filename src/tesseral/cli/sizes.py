"""Amounts of memory as people write them."""

import re

from tesseral._errors import ParameterError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def parse_bytes(text: str, option: str) -> int:
    """Return the bytes that ``text`` means: ``32GB``, ``29.8GiB``, ``800MB`` or a number.

    Raises
    ------
    ParameterError
        If it is no amount of memory; names the ``option``.
    """
    found = _FORM.fullmatch(text.strip())
    unit = found.group(2).lower() if found else ""
    if found is None or (found.group(3) and not unit):
        raise ParameterError(f"{option}: {text!r} is no amount of memory; write it as 32GB.")
    factor = _BINARY[unit] if found.group(3) else _UNITS[unit]
    return int(float(found.group(1)) * factor)
