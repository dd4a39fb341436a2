"""Linear layers over packed 4-bit weights whose input stays in floating point."""

from collections.abc import Sequence
from typing import Any

from tesseral import _native
from tesseral.core.int4 import Int4Linears
from tesseral.core.packed import PackedTensor
from tesseral.core.row_layers import RowLayers, RowsCall

WEIGHT_ONLY_TYPES = ("float32", "bfloat16")
"""Types that rows and outputs may have."""


class WeightOnlyLinears(RowLayers):
    """Linear layers over packed 4-bit weights that read the same floating rows, in one call.

    ``out = sum over groups of weight_scale * (sum of x * code) + bias`` in float32. Codes are
    exact, so with u = 2^-24 and n elements a row, ``|error| <= (n + 4) u sum |x w| + u |out|``
    before the output is rounded to its own type. The order of summation depends on the number of
    rows and on the target. Few rows read weights at the speed of memory; for many, weights are
    unpacked piece by piece in cache, and where the chip multiplies pairs of bfloat16 faster,
    bfloat16 rows take these.

    Parameters
    ----------
    weights : sequence of PackedTensor of shape (out_features_i, in_features)
    biases : sequence of float32 arrays of shape (out_features_i,), or None
        Both as for :class:`~tesseral.core.int4.Int4Linears`.

    Raises
    ------
    DtypeError, ShapeError
        If types, shapes or memory order do not fit.
    """

    row_types = WEIGHT_ONLY_TYPES

    def __init__(self, weights: Sequence[PackedTensor], biases: Sequence[Any]) -> None:
        self._weights = Int4Linears(weights, biases)
        self.in_features = self._weights.in_features
        self.out_features = self._weights.out_features
        self.reads = self._weights.reads

    def run(self, call: RowsCall) -> None:
        """Call the kernel; nothing is checked."""
        layers = zip(self._weights.addresses, call.outs, self.out_features, strict=True)
        _native.weight_only(
            *call.rows,
            self.in_features,
            self.in_features // self._weights.groups,
            call.short,
            [(*row, out, n) for row, out, n in layers],
            call.threads,
            call.target,
        )
