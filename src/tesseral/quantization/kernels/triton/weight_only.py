"""Launching the kernels that multiply floating rows with packed weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import triton
from torch import Tensor

from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.quantization.kernels.triton import device as gpu
from tesseral.quantization.kernels.triton.kernels.weight_only import (
    spread_rows_kernel,
    to_values_kernel,
    transform_rows_kernel,
    weight_only_kernel,
)
from tesseral.quantization.kernels.triton.products import counters
from tesseral.quantization.kernels.triton.rows import Factors
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.triton import interpreted, least_columns

FEW = 64
"""Rows up to which weights are read as they are; for more, their values are made before."""


Spread: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Rows as planes (m, 4, n / 4), factors (m,) and totals (m,); see the kernel."""


def multiply(
    x: Tensor, weights: Sequence[StoredWeight], dtype: torch.dtype, factors: Factors | None = None
) -> list[Tensor]:
    """Return the products of rows (m, n) with some weights, each (m, outputs).

    Parameters
    ----------
    x : floating tensor of shape (m, n)
    weights : sequence of StoredWeight
    dtype : torch.dtype
        Of 16 bits.
    factors : Factors, optional
        Of the transform that the rows take before, in float16.
    """
    if len(x) <= FEW:
        ready = spread(x) if factors is None else transform_few(x, factors)
        return [few_rows(ready, weight, dtype) for weight in weights]
    rows = x.to(dtype) if factors is None else transform_many(x, factors, dtype)
    return [_many_rows(rows, weight, dtype) for weight in weights]


def _many_rows(rows: Tensor, weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    product = torch.nn.functional.linear(rows, values_of(weight, dtype))
    return product if weight.bias is None else product.add_(weight.bias)


def transforms(factors: Factors) -> bool:
    """Return whether the kernel can transform rows on their way into planes."""
    return factors.sizes[1] % 4 == 0


def few_rows(
    rows: Spread,
    weight: StoredWeight,
    dtype: torch.dtype,
    *,
    block: tuple[int, int, int] | None = None,
    splits: int | None = None,
    warps: int | None = None,
    stages: int | None = None,
) -> Tensor:
    """Return the product of some rows with a weight, of shape (m, outputs).

    Parameters
    ----------
    rows : Spread
    weight : StoredWeight
    dtype : torch.dtype
        Type of the result.
    block : three of int, optional
        Rows, outputs and words of 16 bits of a tile.
    splits : int, optional
        Programs that share the columns of a tile.
    warps, stages : int, optional
        Warps of a program, tiles on their way at once.
    """
    planes, factors, totals = rows
    m, words, outputs = len(planes), weight.length // 4, len(weight.codes)
    output = torch.empty(m, outputs, dtype=dtype, device=planes.device)
    if not output.numel():
        return output
    measured = _tile(m)
    block = block or measured.block
    stages = stages or measured.stages
    tiles, groups = triton.cdiv(outputs, block[1]), triton.cdiv(m, block[0])
    if splits is None:
        splits = max(1, measured.waves * cuda.multiprocessors() // (tiles * groups))
    splits = min(splits, triton.cdiv(words, block[2]))
    partial = shared = None
    if splits > 1:
        shape = (splits, groups * tiles, block[1], block[0])
        partial = torch.empty(shape, dtype=torch.float32, device=planes.device)
        shared = counters(planes.device, groups * tiles)
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
        num_warps=warps or measured.warps,
        **gpu.dependent(),
    )
    return output


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows, outputs and words of a tile, warps, tiles on their way, programs a multiprocessor."""

    block: tuple[int, int, int]
    warps: int
    stages: int
    waves: int


def _tile(m: int) -> _Tile:
    """Return the fastest of the tiles that were measured on 9.0."""
    rows = min(64, max(least_columns(), triton.next_power_of_2(m)))
    if rows < 16:
        return _Tile((rows, 64, 64), 2, 5, 4)
    if rows == 16:
        return _Tile((rows, 64, 128), 4, 3, 2)
    return _Tile((rows, 128, 64), 4, 4, 1)


def spread(x: Tensor) -> Spread:
    """Return rows (m, n) as they are, spread."""
    m, words = len(x), x.shape[1] // 4
    planes, factors, totals = spread_room(x)
    if not m:
        return planes, factors, totals
    spread_rows_kernel[(m,)](
        x, planes, factors, totals, x.stride(0),
        WORDS=words, PAD=triton.next_power_of_2(words), num_warps=8, **gpu.dependent(),
    )  # fmt: skip
    return planes, factors, totals


def spread_room(x: Tensor) -> Spread:
    """Return room for rows (m, n), spread."""
    m, words = len(x), x.shape[1] // 4
    planes = torch.empty(m, 4, words, dtype=torch.float16, device=x.device)
    factors, totals = torch.empty(2, m, dtype=torch.float32, device=x.device)
    return planes, factors, totals


def transform_few(x: Tensor, factors: Factors) -> Spread:
    """Return rows (m, n) transformed and spread, in one launch."""
    ready = spread_room(x)
    _transform(x, factors, *ready)
    return ready


def transform_many(x: Tensor, factors: Factors, dtype: torch.dtype) -> Tensor:
    """Return rows (m, n) transformed, in one launch."""
    output = torch.empty(x.shape, dtype=dtype, device=x.device)
    _transform(x, factors, output, None, None)
    return output


def _transform(
    x: Tensor, factors: Factors, output: Tensor, rates: Tensor | None, totals: Tensor | None
) -> None:
    tile = factors.padded[0] * factors.padded[1]
    waves = 8 if tile <= 2**12 else 3 if tile <= 2**13 else 2
    programs = min(len(x), cuda.multiprocessors() * waves)
    if not programs:
        return
    transform_rows_kernel[(programs,)](
        x,
        factors.left,
        factors.right,
        output,
        rates,
        totals,
        len(x),
        x.stride(0),
        factors.unit,
        SIZE_1=factors.sizes[0],
        SIZE_2=factors.sizes[1],
        PAD_1=factors.padded[0],
        PAD_2=factors.padded[1],
        LEFT=factors.left is not None,
        RIGHT=factors.right is not None,
        PLANES=rates is not None,
        num_warps=4 if tile <= 2**14 else 8,
        **gpu.dependent(),
    )


def values_of(weight: StoredWeight, dtype: torch.dtype) -> Tensor:
    """Return the values that the codes of a weight stand for, of shape (outputs, length)."""
    values = torch.empty(len(weight.codes), weight.length, dtype=dtype, device=weight.codes.device)
    count, block = weight.codes.numel(), 2048
    to_values_kernel[(triton.cdiv(count, block),)](
        weight.codes, weight.scale, values, count,
        BYTES=weight.length // 2, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return values
