"""Linear layers over packed weights that prepare what they read, as one call of a kernel."""

from collections.abc import Sequence
from typing import Any

from tesseral import _native
from tesseral.core.int4 import Int4Linears
from tesseral.core.packed import PackedTensor
from tesseral.core.row_layers import RowLayers, RowsCall
from tesseral.core.rows import ROW_TYPES, RowQuantizer


class QuantizedLinears(RowLayers):
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

    row_types = ROW_TYPES

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
        left, right = self._input.split(self.in_features)
        left_factor, right_factor, clip_address = self._input.addresses
        self.kernel = _native.QuantizedLinears(
            left,
            right,
            left_factor,
            right_factor,
            clip_address,
            bits,
            self.in_features // self._products.groups,
            [(*addresses, n) for addresses, n in layers],
        )

    def run(self, call: RowsCall) -> None:
        """Call the kernel; nothing is checked."""
        self.kernel.run(*call.rows, *call[1:])
