"""The inputs of linear layers with transforms apart, to measure what joining them is worth."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from tesseral.core.kronecker import kronecker_apply
from tesseral.llm.fused.block import FusedSite
from tesseral.quantization.kernels.triton.products import multiply
from tesseral.quantization.kernels.triton.rows import form_for, prepare, quantize_rows


class ApartSite(FusedSite):
    """Norm, both factors and rounding as launches of their own, by torch but for the rounding."""

    def __init__(self, layers: list[Any], dtype: torch.dtype, norm: Any = None) -> None:
        super().__init__(layers, dtype, norm)
        factors = layers[0]._source[0].transform.factors
        self._short = [None if factor is None else factor.to(dtype) for factor in factors]
        self._none = prepare(layers[0].in_features, [None, None], dtype)

    def __call__(
        self, x: Tensor, *, gate: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Return the products of rows, as the fused site does."""
        if self._norm is not None:
            x = rms_norm(x, x.shape[-1:], self._norm.weight, self._norm.epsilon)
        if gate is not None:
            x = torch.nn.functional.silu(gate) * x
        if any(factor is not None for factor in self._short):
            x = kronecker_apply(x, self._short)
        form = form_for(x, self._bits)
        codes, scale = quantize_rows(x, self._none, self._clip, self._bits, form=form)
        return multiply(codes, scale, self._weights, self._dtype, residual)
