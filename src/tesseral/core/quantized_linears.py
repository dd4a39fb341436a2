"""Linear layers over packed weights that prepare what they read, as one call of a kernel."""

from collections.abc import Sequence
from typing import Any

from tesseral import _native
from tesseral._errors import DtypeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.int4 import Int4Linears
from tesseral.core.packed import PackedTensor
from tesseral.core.rows import ROW_TYPES, RowQuantizer, check_dense, check_rows
from tesseral.runtime.cpu import cpu_target, cpu_threads

_OUT_TYPES = ("float32", "bfloat16")


class QuantizedLinears:
    """A :class:`~tesseral.core.rows.RowQuantizer` and the layers that read its codes.

    Gives what :class:`~tesseral.core.int4.Int4Linears` gives of the codes and scales, which stay
    inside.

    Parameters
    ----------
    factors, clip, bits
        As for :class:`~tesseral.core.rows.RowQuantizer`.
    weights, biases
        As for :class:`~tesseral.core.int4.Int4Linears`.

    Raises
    ------
    DtypeError, ShapeError, ParameterError
        If they do not fit.
    """

    def __init__(
        self,
        factors: Sequence[Any],
        clip: Any,
        bits: int,
        weights: Sequence[PackedTensor],
        biases: Sequence[Any],
    ) -> None:
        self._input, self._products = (
            RowQuantizer(factors, clip, bits),
            Int4Linears(weights, biases),
        )
        self.in_features, self.out_features = (
            self._products.in_features,
            self._products.out_features,
        )
        layers = zip(self._products.addresses, self.out_features, strict=True)
        self.kernel = _native.QuantizedLinears(
            *self._input.split(self.in_features),
            *self._input.addresses,
            bits,
            self.in_features // self._products.groups,
            [(*addresses, n) for addresses, n in layers],
        )

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
        rows : float32, bfloat16 or float16 array of shape (m, in_features)
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
        if element not in ROW_TYPES or kind not in _OUT_TYPES:
            raise DtypeError(
                f"QuantizedLinears: rows must be one of {ROW_TYPES} and outs one of {_OUT_TYPES}, "
                f"got {element} and {kind}."
            )
        m = rows.shape[0]
        stride = check_rows("rows", rows, element, (m, self.in_features))
        for out, n in zip(outs, self.out_features, strict=True):
            check_dense("out", out, kind, m, n)
        self.kernel.run(
            element,
            address(rows),
            stride,
            m,
            [address(out) for out in outs],
            kind == "bfloat16",
            cpu_threads(threads),
            cpu_target(target),
        )
