"""Linear layers over packed 4-bit weights whose input stays in floating point."""

from collections.abc import Sequence
from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.int4 import Int4Linears
from tesseral.core.packed import PackedTensor
from tesseral.core.rows import check_dense, check_rows
from tesseral.runtime.cpu import cpu_target, cpu_threads

WEIGHT_ONLY_TYPES = ("float32", "bfloat16")
"""Types that rows and outputs may have."""


class WeightOnlyLinears:
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

    def __init__(self, weights: Sequence[PackedTensor], biases: Sequence[Any]) -> None:
        self._weights = Int4Linears(weights, biases)
        self.in_features = self._weights.in_features
        self.out_features = self._weights.out_features
        self.reads = self._weights.reads

    def __call__(
        self,
        rows: Any,
        outs: Sequence[Any],
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``outs`` with the products of every weight.

        Parameters
        ----------
        rows : float32 or bfloat16 array of shape (m, in_features)
            On the CPU; elements of a row are neighbours.
        outs : sequence of float32 or bfloat16 arrays of shape (..., out_features_i)
            All of one type, in C order, with m rows.
        threads, target : optional
            As for :func:`~tesseral.core.int4.linear_int4`.

        Raises
        ------
        DtypeError, ShapeError, ParameterError, BackendError
            If arrays, threads or target do not fit.
        """
        element, kind = dtype_name(rows), dtype_name(outs[0])
        if element not in WEIGHT_ONLY_TYPES or kind not in WEIGHT_ONLY_TYPES:
            raise DtypeError(
                f"WeightOnlyLinears: rows and outs must be of {WEIGHT_ONLY_TYPES}, got {element} "
                f"and {kind}."
            )
        m = rows.shape[0]
        stride = check_rows("rows", rows, element, (m, self.in_features))
        table = []
        for row, n, out in zip(self._weights.addresses, self.out_features, outs, strict=True):
            check_dense("out", out, kind, m, n)
            table.append((*row, address(out), n))
        _native.weight_only(
            element,
            address(rows),
            stride,
            m,
            self.in_features,
            self.in_features // self._weights.groups,
            kind == "bfloat16",
            table,
            cpu_threads(threads),
            cpu_target(target),
        )
