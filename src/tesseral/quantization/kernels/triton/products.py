"""Launching the kernels that multiply rows of codes with packed weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.quantization.kernels.triton import device as gpu
from tesseral.quantization.kernels.triton.kernels.decode import few_rows_kernel, one_row_kernel
from tesseral.quantization.kernels.triton.kernels.tiles import (
    many_rows_kernel,
    widen_kernel,
)
from tesseral.quantization.kernels.triton.rows import FEW
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.triton import interpreted, overlaps, version

TOGETHER = 3
"""Weights that one launch multiplies."""

LONG = 8192
"""Length above which more columns of a row are read at once."""

FAST_SUMS = False
"""Whether float8 sums stay in the tensor cores, with 14 bits, all along a row.

Torch's product then takes a tenth less time, and sums of one sign, whose rounding all goes one
way, come out short: by 5% at 4096 columns, by 25% at 14336. Otherwise they are exact.
"""

FLOAT_UNIT = 512.0
"""What codes are divided by in float8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Up to three weights that read the same rows, and their scales and biases side by side.

    ``float_scale``, (1, outputs), is for codes divided by 512.
    """

    codes: tuple[Tensor, ...]
    scale: Tensor
    float_scale: Tensor
    bias: Tensor | None
    length: int

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of each weight, 0 where there is none."""
        counts = [len(codes) for codes in self.codes]
        first, second, third = (*counts, 0, 0)[:3]
        return first, second, third

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of each weight; of the first again where there is none."""
        first, second, third = (*self.codes, self.codes[0], self.codes[0])[:3]
        return first, second, third


def side_by_side(weights: Sequence[StoredWeight]) -> Weights:
    """Return weights as the kernels read them; codes are not copied."""
    bias = None
    if any(weight.bias is not None for weight in weights):
        bias = torch.cat(
            [
                weight.scale.new_zeros(len(weight.codes), dtype=torch.float32)
                if weight.bias is None
                else weight.bias.float()
                for weight in weights
            ]
        )
    scale = torch.cat([weight.scale.reshape(-1).float() for weight in weights])
    codes = tuple(weight.codes for weight in weights)
    float_scale = (scale * FLOAT_UNIT)[None]
    length = weights[0].length
    return Weights(codes=codes, scale=scale, float_scale=float_scale, bias=bias, length=length)


def multiply(
    codes: Tensor,
    scale: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    residual: Tensor | None = None,
) -> Tensor:
    """Return the scaled products of rows, of shape (rows, outputs of all weights).

    Parameters
    ----------
    codes : int8 or float8 tensor of shape (m, length)
        Contiguous; in float8, ``codes / 512``, with a scale 512 times as large.
    scale : float32 tensor of shape (m, 1)
    weights : Weights
    dtype : torch.dtype
        Type of the result; int32 for the sums themselves.
    residual : tensor of the shape of the result, optional
        Contiguous; added.
    """
    floats = codes.dtype == torch.float8_e4m3fn
    if floats and len(weights.scale) % 16:  # torch's product does not take such a width
        codes, scale, floats = (FLOAT_UNIT * codes.half()).to(torch.int8), scale / FLOAT_UNIT, False
    if floats:
        return many_float_rows(codes, scale, weights, dtype, residual)
    if len(codes) == 1:
        return one_row(codes, scale, weights, dtype, residual)
    if len(codes) <= FEW:
        return few_rows(codes, scale, weights, dtype, residual)
    return many_rows(codes, scale, weights, dtype, residual)


def one_row(
    codes: Tensor,
    scale: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    *,
    block: tuple[int, int] | None = None,
    warps: int | None = None,
) -> Tensor:
    """Return the scaled products of one row, of shape (1, outputs of all weights)."""
    output = torch.empty(1, len(weights.scale), dtype=dtype, device=codes.device)
    long = weights.length > LONG
    block = block or ((8, 1024) if long else (8, 256))
    warps = warps or (8 if long else 4)
    tiles = sum(triton.cdiv(rows, block[0]) for rows in weights.rows)
    first, second, third = (codes.view(torch.int32) for codes in weights.pointers)
    one_row_kernel[(tiles,)](
        codes.view(torch.int32),
        scale,
        first,
        second,
        third,
        weights.scale,
        weights.bias,
        residual,
        output,
        *weights.rows,
        WORDS=weights.length // 8,
        BIAS=weights.bias is not None,
        RESIDUAL=residual is not None,
        ASSEMBLY=not interpreted(),
        BLOCK_N=block[0],
        BLOCK_K=min(block[1], triton.next_power_of_2(weights.length // 8)),
        num_warps=warps,
        **gpu.dependent(),
    )
    return output


def few_rows(
    codes: Tensor,
    scale: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    *,
    block: tuple[int, int, int] | None = None,
    splits: int | None = None,
    warps: int = 8,
    stages: int | None = None,
) -> Tensor:
    """Return the scaled products of some rows, of shape (rows, outputs of all weights)."""
    m, width = len(codes), len(weights.scale)
    output = torch.empty(m, width, dtype=dtype, device=codes.device)
    block = block or _few_tile(m)
    stages = stages or (4 if m <= 16 else 3)
    tiles = sum(triton.cdiv(rows, block[1]) for rows in weights.rows)
    if splits is None:
        splits = max(1, cuda.multiprocessors() * (1 if m <= 16 else 2) // tiles)
    splits = min(splits, triton.cdiv(weights.length // 2, block[2]))
    groups = triton.cdiv(m, block[0])
    partial = shared = None
    if splits > 1:
        shape = (splits, groups * tiles, block[1], block[0])
        partial = torch.empty(shape, dtype=torch.int32, device=codes.device)
        shared = counters(codes.device, groups * tiles)
    few_rows_kernel[(tiles, splits, groups)](
        codes.view(torch.int16),
        scale,
        *weights.pointers,
        weights.scale,
        weights.bias,
        residual,
        output,
        partial,
        shared,
        *weights.rows,
        m,
        width,
        BYTES=weights.length // 2,
        SPLITS=splits,
        BIAS=weights.bias is not None,
        RESIDUAL=residual is not None,
        ASSEMBLY=not interpreted(),
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=block[2],
        STAGES=stages,
        num_warps=warps,
        **gpu.dependent(),
    )
    return output


def many_rows(
    codes: Tensor,
    scale: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    residual: Tensor | None = None,
    *,
    block: tuple[int, int, int] | None = None,
    group: int = 8,
    warps: int = 8,
    stages: int | None = None,
) -> Tensor:
    """Return the scaled products of many rows, of shape (rows, outputs of all weights)."""
    m, width = len(codes), len(weights.scale)
    output = torch.empty(m, width, dtype=dtype, device=codes.device)
    wide = widened(weights, floats=False)
    block = block or _many_tile(output.itemsize)
    # 3.4 takes more shared memory for a tile on its way
    stages = stages or (4 if overlaps("cuda") and version() >= (3, 5) else 3)
    tiles = triton.cdiv(m, block[0]) * triton.cdiv(width, block[1])
    many_rows_kernel[(min(tiles, cuda.multiprocessors()),)](
        _describe(codes, block[0], block[2]),
        _describe(wide, block[1], block[2]),
        scale,
        weights.scale,
        weights.bias,
        residual,
        output,
        m,
        width,
        weights.length,
        output.stride(0),
        BIAS=weights.bias is not None,
        RESIDUAL=residual is not None,
        BLOCK_M=block[0],
        BLOCK_N=block[1],
        BLOCK_K=block[2],
        GROUP=group,
        STAGES=stages,
        num_warps=warps,
        num_stages=stages,
    )
    return output


def _few_tile(m: int) -> tuple[int, int, int]:
    """Return rows, outputs and bytes of weights of a tile, as measured on 9.0, less before."""
    tokens = 16 if m <= 16 else 32 if m <= 32 else 64
    if not overlaps("cuda"):
        return tokens, 64, 128
    return tokens, 128, 256 if m <= 16 else 128


def _many_tile(result_bytes: int) -> tuple[int, int, int]:
    """Return rows, outputs and length of a tile, as measured on 9.0, less before."""
    if not overlaps("cuda"):
        return 128, 128, 64
    # results of 32 bits leave less room for tiles on their way
    return 128, 256 if result_bytes == 2 else 128, 128


def many_float_rows(
    codes: Tensor,
    scale: Tensor,
    weights: Weights,
    dtype: torch.dtype,
    residual: Tensor | None = None,
) -> Tensor:
    """Return the scaled products of many float8 rows by torch's product of that type.

    ``dtype`` is one of 16 bits.
    """
    wide = widened(weights, floats=True)
    output: Tensor = torch._scaled_mm(
        codes, wide.mT, scale_a=scale, scale_b=weights.float_scale, out_dtype=dtype,
        use_fast_accum=FAST_SUMS,
    )  # fmt: skip
    if weights.bias is not None:
        output += weights.bias
    if residual is not None:
        output += residual
    return output


def widened(weights: Weights, *, floats: bool) -> Tensor:
    """Return the codes of all weights as bytes, of shape (outputs of all weights, length)."""
    kind = torch.float8_e4m3fn if floats else torch.int8
    device = weights.codes[0].device
    wide = torch.empty(len(weights.scale), weights.length, dtype=kind, device=device)
    start, block = 0, 2048
    for codes in weights.codes:
        words = codes.view(torch.int16)
        target = wide[start : start + len(codes)].view(torch.int32)
        widen_kernel[(triton.cdiv(words.numel(), block),)](
            words, target, words.numel(), FLOATS=floats, BLOCK=block, num_warps=4
        )
        start += len(codes)
    return wide


def _describe(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    return TensorDescriptor(tensor, list(tensor.shape), list(tensor.stride()), [rows, columns])


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}
_RECORDED = -1


def counters(device: torch.device, count: int) -> Tensor:
    """Return zeros that launches leave at zero: those of a stream, or of all recorded graphs.

    So graphs that multiply few rows must not be replayed at the same time.
    """
    if device.type != "cuda":
        return _zeros(device, 0, count)
    ready = _zeros(device, _RECORDED, count)
    if torch.cuda.is_current_stream_capturing():
        return ready
    return _zeros(device, torch.cuda.current_stream(device).cuda_stream, count)


def _zeros(device: torch.device, stream: int, count: int) -> Tensor:
    found = _COUNTERS.get((device, stream))
    if found is None or len(found) < count:
        room = max(1024, triton.next_power_of_2(count))
        found = _COUNTERS[device, stream] = torch.zeros(room, dtype=torch.int32, device=device)
    return found
