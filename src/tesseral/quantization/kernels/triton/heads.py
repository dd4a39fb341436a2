"""Launching the kernels that bring heads of queries, keys and values into their stored form."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.heads import Places
from tesseral.quantization.kernels.triton.kernels.heads import (
    encode_kernel,
    rotate_and_encode_kernel,
)
from tesseral.quantization.kernels.triton.rows import power_of_two
from tesseral.runtime.triton import interpreted, overlaps


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadMatrix:
    """A transform of heads as the kernels read it: padded, and divided by a power of two."""

    values: Tensor | None
    unit: float


def prepare_matrix(matrix: Tensor | None, dtype: torch.dtype) -> HeadMatrix:
    """Return a transform for heads of a type."""
    if matrix is None:
        return HeadMatrix(values=None, unit=1.0)
    working = torch.float32 if dtype == torch.float32 else torch.float16
    unit = 1.0 if working == torch.float32 else power_of_two(matrix)
    size = _pad(len(matrix))
    room = torch.zeros(size, size, dtype=working, device=matrix.device)
    room[: len(matrix), : len(matrix)] = matrix / unit
    return HeadMatrix(values=room, unit=unit)


def encode_heads(x: Tensor, matrix: HeadMatrix, clip: Tensor, bits: int, places: Places) -> None:
    """Write rows of (batch, heads, tokens, size), transformed, as codes with scale and offset.

    Parameters
    ----------
    x : tensor of shape (batch, heads, tokens, size)
        Elements of a row are neighbours.
    matrix : HeadMatrix
        As :func:`prepare_matrix` gives it.
    clip : tensor of shape (2,)
        Fractions of each row's minimum and maximum to keep.
    bits : {4, 8}
        Width of the codes.
    places : Places
        Where they go; scales and offsets lie alike.
    """
    batch, heads, tokens, size = x.shape
    data, scale, offset = places
    count = batch * heads * tokens
    if count:
        block = 16 if count < 4096 else 64
        encode_kernel[(triton.cdiv(count, block),)](
            x,
            matrix.values,
            clip,
            data,
            scale,
            offset,
            *x.stride()[:3],
            *data.stride()[:3],
            *scale.stride()[:3],
            heads,
            tokens,
            count,
            matrix.unit,
            SIZE=size,
            BLOCK=block,
            TRANSFORM=matrix.values is not None,
            BITS=bits,
            **_options(x),
        )


def rotate_and_encode(
    states: tuple[Tensor, Tensor, Tensor],
    turn: tuple[Tensor, Tensor],
    matrices: tuple[HeadMatrix, HeadMatrix],
    clips: tuple[Tensor, Tensor],
    caches: tuple[PackedTensor, PackedTensor],
    place: Tensor,
    *,
    dense: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Store new keys and values in a cache, and return queries and what was stored.

    Parameters
    ----------
    states : three tensors of shape (batch, tokens, heads, size)
        Queries, keys and values before rotation, as parts of rows of one matrix.
    turn : two tensors of shape (batch or 1, tokens, size)
        Cosine and sine of the rotary embedding.
    matrices : pair of HeadMatrix
        Transforms of queries and of keys, both or neither.
    clips : pair of tensors of shape (2,)
        Of keys and of values.
    caches : pair of PackedTensor of shape (batch, kv_heads, room, size)
        Written, at ``place`` and on.
    place : int64 tensor of shape (1,)
        Slot of the first new token.
    dense : bool
        Whether the new keys and values are wanted as numbers, too.

    Returns
    -------
    queries : tensor of shape (batch, q_heads, tokens, size)
        Laid out in memory by batch, token, head.
    keys, values : tensors of shape (batch, kv_heads, tokens, size)
        As the codes stand for them; without elements unless ``dense``.
    """
    query, key, value = states
    batch, tokens, q_heads, size = query.shape
    kv_heads = key.shape[2]
    output = query.new_empty(batch, tokens, q_heads, size).transpose(1, 2)
    numbers = query.new_empty(2, batch, tokens if dense else 0, kv_heads, size).transpose(2, 3)
    cosine, sine = turn
    keys, values = caches
    count = batch * tokens
    block = 16 if count * q_heads < 4096 else 64
    tiles = triton.cdiv(count * q_heads, block) + 2 * triton.cdiv(count * kv_heads, block)
    rotate_and_encode_kernel[(tiles,)](
        query,
        key,
        value,
        cosine,
        sine,
        matrices[0].values,
        matrices[1].values,
        *clips,
        output,
        keys.data,
        keys.scale,
        keys.offset,
        values.data,
        values.scale,
        values.offset,
        numbers[0],
        numbers[1],
        place,
        query.stride(0),
        query.stride(1),
        0 if len(cosine) == 1 else cosine.stride(0),
        cosine.stride(1),
        *output.stride()[:3],
        *keys.data.stride()[:3],
        *values.data.stride()[:3],
        *keys.scale.stride()[:3],
        *numbers.stride()[1:4],
        q_heads,
        kv_heads,
        tokens,
        batch,
        matrices[0].unit,
        matrices[1].unit,
        SIZE=size,
        BLOCK=block,
        TRANSFORM=matrices[0].values is not None,
        KEY_BITS=keys.bits,
        VALUE_BITS=values.bits,
        DENSE=dense,
        **_options(query),
    )
    return output, numbers[0], numbers[1]


def _options(x: Tensor) -> dict[str, Any]:
    """Return what depends on the type of the rows and on the device alone."""
    half = x.dtype != torch.float32
    options: dict[str, Any] = {
        "PAD": _pad(x.shape[-1]),
        "HALF": half,
        "PRECISION": None if half else ("ieee" if interpreted() else "tf32x3"),
        "DEPENDENT": overlaps("cuda"),
        "num_warps": 4,
    }
    return options | ({"launch_pdl": True} if overlaps("cuda") else {})


def _pad(size: int) -> int:
    return max(16, int(triton.next_power_of_2(size)))
