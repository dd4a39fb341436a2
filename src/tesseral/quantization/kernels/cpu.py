"""Linear products and the rows they read through the native CPU kernels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tesseral.core.int4 import Int4Linears, linear_int4, takes_groups
from tesseral.core.packed import PackedTensor
from tesseral.core.quantized_linears import QuantizedLinears
from tesseral.core.row_layers import RowsCall
from tesseral.core.rows import RowQuantizer
from tesseral.quantization.kernels.problem import LinearProblem, RowsProblem, StoredWeight
from tesseral.quantization.kernels.scaled import scaled
from tesseral.runtime.cpu import cpu_target
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.threads import threads_beside_torch

_ROWS = ("float32", "bfloat16", "float16")
_NONE: tuple[list[int], Any] = ([], None)
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
"""Types of rows whose products have the same type."""


class CpuLinear:
    """Multiplies packed 4-bit weights without unpacking them to memory."""

    name = "cpu"

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support 4-bit weights on the CPU."""
        if problem.device != "cpu":
            return Verdict(False, f"runs on the cpu, got device {problem.device!r}")
        if problem.weight_bits != 4:
            return Verdict(False, f"reads 4-bit weights, got {problem.weight_bits} bits")
        if not takes_groups(problem.in_features, problem.groups):
            return Verdict(
                False,
                "takes one scale a row or one for 16, 32, 64 or a multiple of 128 elements, got "
                f"{problem.groups} for {problem.in_features}",
            )
        return YES

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return ``codes @ weight.codes().T`` as int32."""
        rows = codes.reshape(-1, weight.length).contiguous()
        sums: Tensor = linear_int4(rows, weight.data, threads=threads_beside_torch())
        return sums.reshape(*codes.shape[:-1], sums.shape[-1])

    def linears(
        self,
        codes: Tensor,
        scale: Tensor,
        weights: Sequence[StoredWeight],
        dtype: torch.dtype,
        memo: dict[str, Any],
    ) -> list[Tensor]:
        """Return the scaled products of all weights in one call of the kernel."""
        if scale.dtype != torch.float32 or any(w.scale.dtype != torch.float32 for w in weights):
            return [scaled(self.linear, codes, scale, weight, dtype) for weight in weights]
        kernel = memo.get("cpu")
        if kernel is None or not kernel.reads(weights):
            kernel = memo["cpu"] = Int4Linears(
                [w.packed for w in weights], [w.bias for w in weights]
            )
        lead = codes.shape[:-1]
        rows = codes.reshape(-1, codes.shape[-1])
        kept = dtype if dtype == torch.bfloat16 else torch.float32
        outs = [torch.empty(len(rows), n, dtype=kept) for n in kernel.out_features]
        kernel(rows, scale.reshape(-1, 1), outs, threads=threads_beside_torch())
        return [out.view(*lead, out.shape[-1]).to(dtype) for out in outs]

    def linears_of_rows(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None],
        clip: Tensor,
        bits: int,
        weights: Sequence[StoredWeight],
        memo: dict[str, Any],
    ) -> list[Tensor]:
        """Return the products of all weights with rows that the same call quantises."""
        held, kernel = memo.get("joined", _NONE)
        addresses = _addresses(factors, clip, weights)
        if addresses != held:
            packed, biases = [w.packed for w in weights], [w.bias for w in weights]
            kernel = QuantizedLinears(factors, clip, bits, packed, biases)
            memo["joined"] = addresses, kernel
        dtype, shape, width = x.dtype, x.shape, kernel.in_features
        name = _NAMES.get(dtype)
        if name is not None and shape[-1] == width and x.is_contiguous():
            # what is made here and what was just looked at fit: for one token, checks take long
            outs = [torch.empty(*shape[:-1], n, dtype=dtype) for n in kernel.out_features]
            kernel.run(
                RowsCall(
                    rows=(name, x.data_ptr(), width, x.numel() // width),
                    outs=[out.data_ptr() for out in outs],
                    short=dtype is torch.bfloat16,
                    threads=threads_beside_torch(),
                    target=cpu_target(),
                )
            )
            return outs
        kept = torch.float32 if dtype is torch.float16 else dtype
        outs = [torch.empty(*shape[:-1], n, dtype=kept) for n in kernel.out_features]
        kernel(as_rows(x), outs, threads=threads_beside_torch())
        return [out.to(dtype) for out in outs]


class CpuRows:
    """Transforms a row and turns it into codes while it lies in the cache."""

    name = "cpu"

    def supports(self, problem: RowsProblem) -> Verdict:
        """Support floating rows on the CPU that are computed in float32."""
        if problem.device != "cpu":
            return Verdict(False, f"runs on the cpu, got device {problem.device!r}")
        if problem.working_dtype != "float32":
            return Verdict(False, f"computes in float32, got {problem.working_dtype}")
        if problem.dtype not in _ROWS:
            return Verdict(False, f"reads {', '.join(_ROWS)}, got {problem.dtype}")
        return YES

    def quantize(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None],
        clip: Tensor,
        bits: int,
        memo: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Return codes and scales, in one pass over memory."""
        rows = as_rows(x)
        m, n = rows.shape
        # rows a multiple of 512 bytes apart fall into few sets of the caches
        codes = torch.empty(m, n + 64 if n % 512 == 0 else n, dtype=torch.int8)[:, :n]
        scale = torch.empty(m, 1)
        kernel = memo.get("cpu")
        if kernel is None or not kernel.reads(factors, clip):
            kernel = memo["cpu"] = RowQuantizer(factors, clip, bits)
        kernel(rows, codes, scale, threads=threads_beside_torch())
        lead = x.shape[:-1]
        return codes.view(*lead, n), scale.view(*lead, 1)


def as_rows(x: Tensor) -> Tensor:
    """View tokens as rows whose elements are neighbours, copying where they are not."""
    rows = x.detach().reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _addresses(
    factors: Sequence[Tensor | None], clip: Tensor, weights: Sequence[StoredWeight]
) -> list[int]:
    """Return where everything lies that a kernel holds on to."""
    arrays = [*factors, clip]
    for weight in weights:
        arrays += weight[:3]
    return [0 if array is None else array.data_ptr() for array in arrays]
