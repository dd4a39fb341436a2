"""Launching the forward kernel: descriptors, the lists of a mask, one program a tile."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from tesseral.attention.backends.triton.kernels.forward import attention_forward_kernel
from tesseral.attention.backends.triton.kernels.lists import mask_lists_kernel
from tesseral.attention.backends.triton.tuning import TileConfig, is_general, padded
from tesseral.attention.problem import AttentionArrays, AttentionProblem

LOG2E = 1.4426950408889634

PRECISION = "tf32x3"
"""How float32 is multiplied: three products of the tensor cores, as precise as one of float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Results:
    """Output (batch, q_heads, q_len, value_dim) and lse without its last axis; may be views."""

    output: torch.Tensor
    lse: torch.Tensor


def band_of(problem: AttentionProblem) -> dict[str, Any]:
    """Return the band of keys that a query sees around its place, as kernels take it."""
    left, right = problem.window or (-1, -1)
    if problem.causal:
        right = 0
    if problem.q_len == 1:
        right = -1  # the last query stands at the last key
    return {"left": max(left, 0), "right": max(right, 0), "LEFT": left >= 0, "RIGHT": right >= 0}


def run_tiles(
    problem: AttentionProblem,
    arrays: AttentionArrays,
    results: Results,
    config: TileConfig,
    spans: torch.Tensor | None = None,
) -> None:
    """Write output and lse of a call with dense keys.

    Parameters
    ----------
    problem : AttentionProblem
        The call.
    arrays : AttentionArrays
        Of shapes as of :func:`tesseral.attention.attention`; packed sequences in one batch.
    results : Results
        Where to write.
    config : TileConfig
        The tiles.
    spans : int32 tensor of shape (4, n_sequences), optional
        Start and length of each sequence's queries, and of its keys.
    """
    mask, steps = dense_mask(problem, arrays)
    general = is_general(problem)
    q_tiles = triton.cdiv(problem.q_len, config.q_tile)
    lists = _mask_lists(problem, mask, config) if mask is not None else None
    d_pad, dv_pad = padded(problem.head_dim), padded(problem.value_dim)
    slopes, slope_batch = slopes_of(arrays)
    described = config.describe
    sources: tuple[tuple[Any, int, int], ...] = (
        (arrays.query, config.q_tile, d_pad),
        (arrays.key, config.k_tile, d_pad),
        (arrays.value, config.k_tile, dv_pad),
    )
    tensors = [source[0] if described else neighbours(source[0]) for source in sources]
    attention_forward_kernel[(q_tiles * problem.q_heads * problem.batch,)](
        *([describe(*source) for source in sources] if described else tensors),
        results.output,
        results.lse,
        mask,
        lists.partial_tiles if lists else None,
        lists.full_tiles if lists else None,
        lists.counts if lists else None,
        arrays.sinks,
        slopes,
        spans,
        *(tensor.stride()[:3] for tensor in tensors),
        results.output.stride()[:3],
        results.lse.stride()[:3],
        steps,
        lists.batch_step if lists else 0,
        lists.head_step if lists else 0,
        slope_batch,
        problem.batch,
        problem.q_heads,
        problem.group,
        problem.q_len,
        problem.kv_len,
        scale=problem.scale if general else problem.scale * LOG2E,
        softcap=problem.softcap or 0.0,
        MASK=problem.mask,
        TAIL=spans is not None or problem.kv_len % config.k_tile != 0,
        GENERAL=general,
        SOFTCAP=problem.softcap is not None,
        ALIBI=problem.alibi,
        SINKS=problem.sinks,
        PACKED=spans is not None,
        DESCRIBED=described,
        PRECISION=PRECISION,
        BLOCK_M=config.q_tile,
        BLOCK_N=config.k_tile,
        HEAD_DIM=problem.head_dim,
        D_PAD=d_pad,
        VALUE_DIM=problem.value_dim,
        DV_PAD=dv_pad,
        STAGES=config.stages,
        num_warps=config.warps,
        num_stages=config.stages,
        **band_of(problem),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _MaskLists:
    """The tiles of keys that each tile of queries visits, for each distinct mask."""

    partial_tiles: torch.Tensor
    full_tiles: torch.Tensor
    counts: torch.Tensor
    batch_step: int
    head_step: int


def _mask_lists(problem: AttentionProblem, mask: torch.Tensor, config: TileConfig) -> _MaskLists:
    q_tiles = triton.cdiv(problem.q_len, config.q_tile)
    k_tiles = triton.cdiv(problem.kv_len, config.k_tile)
    batches, heads = (
        1 if mask.stride(axis) == 0 else mask.shape[axis] for axis in (0, 1)
    )  # a mask that several share is read once
    entries = batches * heads * q_tiles
    partial, full = mask.new_empty((2, entries, k_tiles), dtype=torch.int32)
    counts = mask.new_empty((entries, 2), dtype=torch.int32)
    mask_lists_kernel[(entries,)](
        mask,
        partial,
        full,
        counts,
        mask.stride(),
        heads,
        problem.q_len,
        problem.kv_len,
        ADDITIVE=problem.mask == "additive",
        BLOCK_M=config.q_tile,
        BLOCK_N=config.k_tile,
        num_warps=4,
        **band_of(problem),
    )
    return _MaskLists(
        partial_tiles=partial,
        full_tiles=full,
        counts=counts,
        batch_step=heads if batches > 1 else 0,
        head_step=1 if heads > 1 else 0,
    )


def dense_mask(
    problem: AttentionProblem, arrays: AttentionArrays
) -> tuple[torch.Tensor | None, tuple[int, ...]]:
    """Return the mask spread over all scores, a view that kernels can read, and its strides."""
    mask = arrays.mask
    if mask is None:
        return None, (0, 0, 0, 0)
    if mask.dtype == torch.bool:
        mask = mask.view(torch.uint8)
    elif mask.dtype == torch.float64:
        mask = mask.float()
    shape = (problem.batch, problem.q_heads, problem.q_len, problem.kv_len)
    mask = mask[(None,) * (4 - mask.ndim)]
    # a batch or a head of its own has a stride, even where it is the only one
    strides = tuple(
        0 if size == 1 else step for size, step in zip(mask.shape, mask.stride(), strict=True)
    )
    return mask.expand(shape).as_strided(shape, strides), strides


def slopes_of(arrays: AttentionArrays) -> tuple[torch.Tensor | None, int]:
    """Return contiguous slopes, and the step from one batch to the next."""
    if arrays.alibi_slopes is None:
        return None, 0
    slopes = arrays.alibi_slopes.contiguous()
    return slopes, slopes.shape[-1] if slopes.ndim == 2 else 0


def describe(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Return a descriptor of (batch, heads, length, width) that reads tiles of one head.

    The copy engine needs neighbouring columns, steps of 16 bytes and no repetition: what lies
    otherwise is copied.
    """
    size = tensor.element_size()
    strides = [
        columns * n if count == 1 else step
        for n, count, step in zip((1, 1, 1, 0), tensor.shape, tensor.stride(), strict=True)
    ]
    strides[3] = tensor.stride(3) if tensor.shape[3] > 1 else 1
    fits = (
        strides[3] == 1
        and tensor.data_ptr() % 16 == 0
        and all(step > 0 and step * size % 16 == 0 for step in strides[:3])
    )
    if not fits:
        unit = 16 // size
        wide = -(-tensor.shape[3] // unit) * unit
        copy = tensor.new_empty((*tensor.shape[:3], wide))[..., : tensor.shape[3]]
        tensor = copy.copy_(tensor)
        strides = list(tensor.stride())
    return TensorDescriptor(tensor, list(tensor.shape), strides, [1, 1, rows, columns])


def neighbours(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose columns are neighbours; a copy where they are not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
