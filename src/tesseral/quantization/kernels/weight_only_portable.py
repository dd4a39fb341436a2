"""Packed weights under floating inputs through torch's own operations, on every device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tesseral.core.kronecker import kronecker_apply
from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.quantization.kernels.weight_only import WeightOnlyProblem
from tesseral.runtime.registry import YES, Verdict


class PortableWeightOnly:
    """Dequantises a weight and multiplies."""

    name = "portable"

    def supports(self, problem: WeightOnlyProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def transform(self, x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
        """Return the transformed rows, in the type of the factors."""
        dtype = next(factor.dtype for factor in factors if factor is not None)
        result: Tensor = kronecker_apply(x.to(dtype), factors)
        return result

    def linear(
        self, x: Tensor, weight: StoredWeight, dtype: torch.dtype, memo: dict[str, Any]
    ) -> Tensor:
        """Return the product, computed in the wider type of rows and scales."""
        del memo
        wide = torch.promote_types(x.dtype, weight.scale.dtype)
        y = torch.nn.functional.linear(x.to(wide), weight.packed.dequantize().to(wide))
        if weight.bias is not None:
            y = y + weight.bias
        return y.to(dtype)
