"""Launching the kernels that multiply floating rows with packed weights."""

import torch
import triton
from torch import Tensor

from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.quantization.kernels.triton import device as gpu
from tesseral.quantization.kernels.triton.kernels.weight_only import (
    spread_rows_kernel,
    to_values_kernel,
    weight_only_kernel,
)
from tesseral.quantization.kernels.triton.products import counters
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.triton import interpreted

FEW = 64
"""Rows up to which weights are read as they are; for more, their values are made before."""


def multiply(x: Tensor, weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    """Return the product of rows (m, n) with a weight, (m, outputs)."""
    if len(x) <= FEW:
        return few_rows(x, weight, dtype)
    y = torch.nn.functional.linear(x.to(dtype), values_of(weight, dtype))
    if weight.bias is not None:
        y += weight.bias
    return y


def few_rows(
    x: Tensor,
    weight: StoredWeight,
    dtype: torch.dtype,
    *,
    block: tuple[int, int, int] | None = None,
    splits: int | None = None,
    warps: int = 4,
    stages: int = 4,
) -> Tensor:
    """Return the product of some rows (m, n) with a weight, of shape (m, outputs).

    Parameters
    ----------
    x : floating tensor of shape (m, n)
        Neighbours in a row lie side by side.
    weight : StoredWeight
    dtype : torch.dtype
        Type of the result.
    block : three of int, optional
        Rows, outputs and words of 16 bits of a tile.
    splits : int, optional
        Programs that share the columns of a tile.
    warps, stages : int
        Warps of a program, tiles on their way at once.
    """
    m, words, outputs = len(x), weight.length // 4, len(weight.codes)
    output = torch.empty(m, outputs, dtype=dtype, device=x.device)
    if not output.numel():
        return output
    planes, factors, totals = spread(x)
    block = block or (8 if m <= 8 else min(64, max(16, triton.next_power_of_2(m))), 64, 64)
    tiles, groups = triton.cdiv(outputs, block[1]), triton.cdiv(m, block[0])
    if splits is None:
        splits = max(1, 2 * cuda.multiprocessors() // (tiles * groups))
    splits = min(splits, triton.cdiv(words, block[2]))
    partial = shared = None
    if splits > 1:
        shape = (splits, groups * tiles, block[1], block[0])
        partial = torch.empty(shape, dtype=torch.float32, device=x.device)
        shared = counters(x.device, groups * tiles)
    weight_only_kernel[(tiles, splits, groups)](
        planes,
        factors,
        totals,
        weight.codes.view(torch.int16),
        weight.scale,
        weight.bias,
        output,
        partial,
        shared,
        m,
        outputs,
        WORDS=words,
        SPLITS=splits,
        BIAS=weight.bias is not None,
        ASSEMBLY=not interpreted(),
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_W=block[2],
        STAGES=stages,
        num_warps=warps,
        **gpu.dependent(),
    )
    return output


def spread(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (m, n) as planes (m, 4, n / 4), factors (m,) and totals (m,); see the kernel."""
    m, words = len(x), x.shape[1] // 4
    planes = torch.empty(m, 4, words, dtype=torch.float16, device=x.device)
    factors, totals = torch.empty(2, m, dtype=torch.float32, device=x.device)
    spread_rows_kernel[(m,)](
        x, planes, factors, totals, x.stride(0),
        WORDS=words, PAD=triton.next_power_of_2(words), num_warps=8, **gpu.dependent(),
    )  # fmt: skip
    return planes, factors, totals


def values_of(weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    """Return the values that the codes of a weight stand for, of shape (outputs, length)."""
    values = torch.empty(len(weight.codes), weight.length, dtype=dtype, device=weight.codes.device)
    count, block = weight.codes.numel(), 2048
    to_values_kernel[(triton.cdiv(count, block),)](
        weight.codes, weight.scale, values, count,
        BYTES=weight.length // 2, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return values
