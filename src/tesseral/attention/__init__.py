"""Exact attention that never holds all the scores, on any machine.

:func:`attention` is the entry and :func:`explain` says how it would run;
:func:`attention_varlen` and :func:`attention_decode` take sequences of several lengths, packed
or in the blocks of a pool, and :func:`explain_varlen` and :func:`explain_decode` explain them;
:class:`TilingMask` tells a kernel which blocks of a long mask it need not touch. README.md
in this folder holds the mathematics. Importing this room imports no framework.
"""

from tesseral.attention.api import attention, explain
from tesseral.attention.tiling_mask import TilingMask
from tesseral.attention.varlen import (
    attention_decode,
    attention_varlen,
    explain_decode,
    explain_varlen,
)

__all__ = [
    "TilingMask",
    "attention",
    "attention_decode",
    "attention_varlen",
    "explain",
    "explain_decode",
    "explain_varlen",
]
