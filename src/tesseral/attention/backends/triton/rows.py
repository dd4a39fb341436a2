"""Launching the kernel of rows: codes and pools read in place, keys shared among programs."""

from typing import Any

import torch
import triton

from tesseral.attention.backends.triton.kernels.merge import merge_splits_kernel
from tesseral.attention.backends.triton.kernels.rows import attention_rows_kernel
from tesseral.attention.backends.triton.tiles import (
    LOG2E,
    PRECISION,
    Results,
    band_of,
    dense_mask,
    neighbours,
    slopes_of,
)
from tesseral.attention.backends.triton.tuning import TileConfig, is_general, padded
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.core import PackedTensor
from tesseral.runtime.triton import interpreted, overlaps

MERGED_COLUMNS = 32
"""Columns of the output that a program merges: few, so that many programs share the reading."""


def run_rows(
    problem: AttentionProblem,
    arrays: AttentionArrays,
    results: Results,
    config: TileConfig,
    splits: int,
    spans: torch.Tensor | None = None,
    tables: torch.Tensor | None = None,
) -> None:
    """Write output and lse of a call with any keys: dense, codes, or in pools.

    Parameters
    ----------
    problem : AttentionProblem
        The call.
    arrays : AttentionArrays
        Of shapes as of :func:`tesseral.attention.attention`; packed sequences in one batch.
        Pools are (n_blocks, kv_heads, block_size, head_dim or value_dim), as views.
    results : Results
        Where to write.
    config : TileConfig
        The tiles.
    splits : int
        Parts that the keys are cut in.
    spans : int32 tensor of shape (4, n_sequences), optional
        Start and length of each sequence's queries, and of its keys.
    tables : int32 tensor of shape (n_sequences, max_blocks), optional
        Blocks of each sequence.
    """
    mask, mask_steps = dense_mask(problem, arrays)
    query = neighbours(arrays.query)
    key, key_scale, key_offset, key_bits = _parts(arrays.key)
    value, value_scale, value_offset, value_bits = _parts(arrays.value)
    slopes, slope_batch = slopes_of(arrays)
    sums = states = None
    if splits > 1:
        rows = results.lse.numel()
        sums = query.new_empty((rows, splits, problem.value_dim), dtype=torch.float32)
        states = query.new_empty((rows, splits, 2), dtype=torch.float32)
    row_tiles = triton.cdiv(problem.q_len * problem.group, config.q_tile)
    grid = (row_tiles * splits * problem.kv_heads * problem.batch,)
    general = is_general(problem)
    dependent = _dependent(query)
    attention_rows_kernel[grid](
        query,
        key,
        value,
        key_scale,
        key_offset,
        value_scale,
        value_offset,
        results.output,
        results.lse,
        sums,
        states,
        mask,
        arrays.sinks,
        slopes,
        spans,
        tables,
        query.stride()[:3],
        key.stride()[:3],
        value.stride()[:3],
        _steps(key_scale),
        _steps(value_scale),
        results.output.stride()[:3],
        results.lse.stride()[:3],
        mask_steps,
        slope_batch,
        0 if tables is None else tables.stride(0),
        0 if tables is None else key.shape[2],
        problem.batch,
        problem.kv_heads,
        row_tiles,
        splits,
        problem.q_len,
        problem.kv_len,
        scale=problem.scale if general else problem.scale * LOG2E,
        softcap=problem.softcap or 0.0,
        GROUP=problem.group,
        KEY_BITS=key_bits,
        KEY_OFFSET=key_offset is not None,
        VALUE_BITS=value_bits,
        VALUE_OFFSET=value_offset is not None,
        MASK=problem.mask,
        GENERAL=general,
        SOFTCAP=problem.softcap is not None,
        ALIBI=problem.alibi,
        SINKS=problem.sinks,
        PACKED=spans is not None,
        PAGED=tables is not None,
        SPLIT=splits > 1,
        PRECISION=PRECISION,
        ASSEMBLY=not interpreted(),
        EARLY=config.waves == 1,  # else several of the next call would share a multiprocessor
        BLOCK_M=config.q_tile,
        BLOCK_N=config.k_tile,
        HEAD_DIM=problem.head_dim,
        D_PAD=_padded_codes(problem.head_dim, key_bits),
        VALUE_DIM=problem.value_dim,
        DV_PAD=_padded_codes(problem.value_dim, value_bits),
        STAGES=config.stages,
        num_warps=config.warps,
        num_stages=config.stages,
        **band_of(problem),
        **dependent,
    )
    if sums is not None:
        _merge(problem, arrays, results, sums, states, splits)


def _merge(
    problem: AttentionProblem,
    arrays: AttentionArrays,
    results: Results,
    sums: Any,
    states: Any,
    splits: int,
) -> None:
    chunks = triton.cdiv(problem.value_dim, MERGED_COLUMNS)
    merge_splits_kernel[(results.lse.numel() * chunks,)](
        sums,
        states,
        results.output,
        results.lse,
        arrays.sinks,
        results.output.stride()[:3],
        results.lse.stride()[:3],
        problem.q_heads,
        results.lse.shape[2],
        splits,
        SINKS=problem.sinks,
        BLOCK_S=triton.next_power_of_2(splits),
        BLOCK_D=MERGED_COLUMNS,
        VALUE_DIM=problem.value_dim,
        num_warps=4,
        **_dependent(results.output),
    )


def _dependent(tensor: torch.Tensor) -> dict[str, Any]:
    """Return what lets a kernel start before the one ahead of it ends, where a device can."""
    if overlaps(str(tensor.device)):
        return {"DEPENDENT": True, "launch_pdl": True}
    return {"DEPENDENT": False}


def _parts(array: torch.Tensor | PackedTensor) -> tuple[Any, Any, Any, int]:
    """Return numbers or codes, scales and offsets of equal strides, and the bits of a code."""
    if not isinstance(array, PackedTensor):
        return neighbours(array), None, None, 0
    scale, offset = array.scale, array.offset
    if scale.dtype == torch.float64:
        scale = scale.float()
    if offset is not None:
        offset = offset.to(scale.dtype)
        if offset.stride() != scale.stride():
            scale, offset = scale.contiguous(), offset.contiguous()
    return _words(array.data), scale, offset, array.bits


def _words(data: torch.Tensor) -> torch.Tensor:
    """Return bytes of codes as words of 16 bits; a copy where they do not lie so."""
    fits = (
        data.stride(-1) == 1
        and data.data_ptr() % 2 == 0
        and not any(step % 2 for step in (data.shape[-1], *data.stride()[:-1]))
    )
    if not fits:
        room = data.new_zeros((*data.shape[:-1], data.shape[-1] + data.shape[-1] % 2))
        room[..., : data.shape[-1]] = data
        data = room
    return data.view(torch.int16)


def _padded_codes(width: int, bits: int) -> int:
    """Return the columns of a tile; 16 words of codes at least, which a product needs."""
    return max(padded(width), 256 // bits if bits else 0)


def _steps(scale: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if scale is None else scale.stride()[:3]
