"""Exact attention that never holds all the scores, on any machine.

:func:`attention` is the entry and :func:`explain` says how it would run;
:class:`TilingMask` tells a kernel which blocks of a long mask it need not touch. README.md
in this folder holds the mathematics. Importing this room imports no framework.
"""

from tesseral.attention.api import attention, explain
from tesseral.attention.tiling_mask import TilingMask

__all__ = ["TilingMask", "attention", "explain"]
