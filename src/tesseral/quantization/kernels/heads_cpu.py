"""Heads of queries, keys and values through the native CPU kernel."""

import torch
from torch import Tensor

from tesseral.core.head_rows import HEAD_MULTIPLE, encode_heads, transform_heads
from tesseral.core.rows import ROW_TYPES
from tesseral.quantization.kernels.heads import HeadsProblem, Places
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.threads import threads_beside_torch


class CpuHeads:
    """Transforms heads, and writes their codes where a cache keeps them."""

    name = "cpu"

    def supports(self, problem: HeadsProblem) -> Verdict:
        """Support whole vectors on the CPU, computed in float32."""
        if problem.device != "cpu":
            return Verdict(False, f"runs on the cpu, got device {problem.device!r}")
        if problem.working_dtype != "float32":
            return Verdict(False, f"computes in float32, got {problem.working_dtype}")
        if problem.dtype not in ROW_TYPES:
            return Verdict(False, f"reads {', '.join(ROW_TYPES)}, got {problem.dtype}")
        if problem.head_dim % HEAD_MULTIPLE:
            return Verdict(
                False, f"takes a multiple of {HEAD_MULTIPLE} elements, got {problem.head_dim}"
            )
        return Verdict(False, "gives no gradients") if problem.gradient else YES

    def transform(self, x: Tensor, factor: Tensor) -> Tensor:
        """Return heads times a matrix."""
        out = torch.empty_like(x)  # with the steps of x, as far as it is dense
        transform_heads(_neighbours(x), factor, out, threads=threads_beside_torch())
        return out

    def encode(
        self, x: Tensor, factor: Tensor | None, clip: Tensor, bits: int, places: Places
    ) -> None:
        """Write codes, scales and offsets."""
        encode_heads(_neighbours(x), factor, clip, bits, *places, threads=threads_beside_torch())


def _neighbours(x: Tensor) -> Tensor:
    """Return heads whose elements are neighbours, copying them where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()
