"""The published limits of an Ascend chip: units and memories near them."""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """What a chip has of each kind, and bytes of the memories of one core.

    Matrix units (cube cores) and vector units exchange numbers only through the L2 cache.

    Attributes
    ----------
    cube_cores, vector_cores : int
        Units of the chip.
    clock_hz : float
        Clock of all of them.
    l1, l0a, l0b, l0c : int
        Memories of a cube core: what comes from outside; left and right operand; products.
    ub : int
        Memory of a vector core.
    l2 : int
        Cache that all share.
    """

    cube_cores: int
    vector_cores: int
    clock_hz: float
    l1: int
    l0a: int
    l0b: int
    l0c: int
    ub: int
    l2: int


ASCEND_910B2 = Chip(
    cube_cores=24,
    vector_cores=48,
    clock_hz=1.8e9,
    l1=512 * KIB,
    l0a=64 * KIB,
    l0b=64 * KIB,
    l0c=128 * KIB,
    ub=192 * KIB,
    l2=192 * KIB * KIB,
)
"""Ascend 910B2."""
