"""Linear products and the rows they read through torch's own operations, on every device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tesseral.core.kronecker import kronecker_apply
from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.problem import LinearProblem, RowsProblem, StoredWeight
from tesseral.quantization.kernels.scaled import scaled
from tesseral.quantization.numerics import row_range, symmetric_codes, symmetric_scale
from tesseral.runtime.registry import YES, Verdict

_EXACT_FLOAT32 = 2**24


class PortableLinear:
    """Multiplies codes as floating numbers, in a type that holds every sum exactly."""

    name = "portable"

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return ``codes @ weight.codes().T``; exact, as a floating tensor."""
        largest = 2 ** (weight.bits - 1) * 128 * weight.length
        dtype = torch.float32 if largest <= _EXACT_FLOAT32 else torch.float64
        return torch.nn.functional.linear(codes.to(dtype), weight.codes().to(dtype))

    def linears(
        self,
        codes: Tensor,
        scale: Tensor,
        weights: Sequence[StoredWeight],
        dtype: torch.dtype,
        memo: dict[str, Any],
    ) -> list[Tensor]:
        """Return the scaled products, one weight after the other."""
        del memo
        return [scaled(self.linear, codes, scale, weight, dtype) for weight in weights]


class PortableRows:
    """Transforms and rounds rows operation by operation."""

    name = "portable"

    def supports(self, problem: RowsProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def quantize(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None],
        clip: Tensor,
        bits: int,
        memo: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Return codes and scales in the type of ``clip``."""
        del memo
        values = x.to(clip.dtype)
        if any(factor is not None for factor in factors):
            values = kronecker_apply(values, factors)
        scale = symmetric_scale(*row_range(values, clip), bits)
        return symmetric_codes(values, scale, bits).to(torch.int8), scale
