"""Packed weights under floating inputs through the native CPU kernels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tesseral.core.int4 import takes_groups
from tesseral.core.rows import transform_rows
from tesseral.core.weight_only import WEIGHT_ONLY_TYPES, WeightOnlyLinears
from tesseral.quantization.kernels.cpu import as_rows
from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.quantization.kernels.weight_only import WeightOnlyProblem
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.threads import threads_beside_torch


class CpuWeightOnly:
    """Multiplies packed 4-bit weights without unpacking them to memory."""

    name = "cpu"

    def supports(self, problem: WeightOnlyProblem) -> Verdict:
        """Support float32 and bfloat16 rows and 4-bit weights on the CPU."""
        if problem.device != "cpu":
            return Verdict(False, f"runs on the cpu, got device {problem.device!r}")
        if problem.working_dtype != "float32":
            return Verdict(False, f"computes in float32, got {problem.working_dtype}")
        if problem.dtype not in WEIGHT_ONLY_TYPES:
            return Verdict(False, f"reads {', '.join(WEIGHT_ONLY_TYPES)}, got {problem.dtype}")
        if problem.weight_bits != 4:
            return Verdict(False, f"reads 4-bit weights, got {problem.weight_bits} bits")
        if not takes_groups(problem.in_features, problem.groups):
            return Verdict(
                False,
                "takes one scale a row or one for 16, 32, 64 or a multiple of 128 elements, got "
                f"{problem.groups} for {problem.in_features}",
            )
        return Verdict(False, "gives no gradients") if problem.gradient else YES

    def transform(self, x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
        """Return the transformed rows, rounded to their own type."""
        out = torch.empty(x.shape, dtype=x.dtype)
        transform_rows(as_rows(x), factors, out, threads=threads_beside_torch())
        return out

    def linear(
        self, x: Tensor, weight: StoredWeight, dtype: torch.dtype, memo: dict[str, Any]
    ) -> Tensor:
        """Return the product in one call of the kernel."""
        kernel = memo.get("weight-only")
        if kernel is None or not kernel.reads([weight]):
            kernel = memo["weight-only"] = WeightOnlyLinears([weight.packed], [weight.bias])
        kept = dtype if dtype == torch.bfloat16 else torch.float32
        out = torch.empty(*x.shape[:-1], *kernel.out_features, dtype=kept)
        kernel(as_rows(x), [out], threads=threads_beside_torch())
        return out.to(dtype)
