"""Running a planned call: what kernels can read, results, and the launches."""

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tesseral.attention.backends.cuda.call import Call
from tesseral.attention.backends.cuda.chips import Chip, Tiles
from tesseral.attention.backends.cuda.program import Variant, build
from tesseral.attention.backends.cuda.seen import seen_tiles
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.sequences import Sequences
from tesseral.core._arrays import Array
from tesseral.runtime.cuda.driver import Kernel, load

if TYPE_CHECKING:
    from tesseral.attention.backends.cuda.backend import CudaPlan

UNBOUNDED = 2**30
"""Keys that a side of the band reaches where nothing bounds it."""

MERGE_LINES = 4
"""Lines that a block of threads merges, a warp each."""

ALIGNMENT = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tensors:
    """What a launch reads and writes: all (batch, heads, length, width), pools with blocks first.

    ``lse`` lacks the last axis. ``spans`` is int32 of shape (4, n_sequences), ``tables`` is
    int32 of shape (n_sequences, max_blocks).
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    lse: torch.Tensor
    mask: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    slopes: torch.Tensor | None = None
    spans: torch.Tensor | None = None
    tables: torch.Tensor | None = None


def run_dense(
    chip: Chip, problem: AttentionProblem, arrays: AttentionArrays, plan: "CudaPlan"
) -> tuple[Array, Array]:
    """Return output and lse of a dense call; see the backend for shapes."""
    query = arrays.query
    batch, heads, length, _ = query.shape
    lse = query.new_empty((batch, heads, length), dtype=torch.float32)
    if length > 1 and query.stride(1) < query.stride(2):
        output = query.new_empty((batch, length, heads, problem.value_dim)).transpose(1, 2)
    else:
        output = query.new_empty((batch, heads, length, problem.value_dim))
    if lse.numel():
        sides = (arrays.query, arrays.key, arrays.value)
        tensors = _gather(problem, arrays, sides, output, lse, tiles=plan.tiles)
        _run(chip, problem, tensors, plan)
    return output, lse


def run_sequences(
    chip: Chip,
    problem: AttentionProblem,
    arrays: AttentionArrays,
    sequences: Sequences,
    plan: "CudaPlan",
) -> tuple[Array, Array]:
    """Return output and lse of packed sequences; see the backend for shapes."""
    query = arrays.query
    output = query.new_empty((*query.shape[:2], problem.value_dim))
    lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    if lse.numel():
        paged = sequences.block_tables is not None
        kept: tuple[Any, Any] = (arrays.key, arrays.value)
        kept_first = (side.transpose(1, 2) if paged else _heads_first(side) for side in kept)
        sides = (_heads_first(query), *kept_first)
        spans = [sequences.q_starts, sequences.q_lens, sequences.kv_starts, sequences.kv_lens]
        tables = sequences.block_tables
        tensors = _gather(
            problem, arrays, sides, _heads_first(output), _heads_first(lse[..., None])[..., 0],
            tiles=plan.tiles,
            spans=torch.from_numpy(np.stack(spans).astype(np.int32)).to(query.device),
            tables=None
            if tables is None
            else torch.from_numpy(tables.astype(np.int32)).to(query.device),
        )  # fmt: skip
        _run(chip, problem, tensors, plan)
    return output, lse


def _gather(
    problem: AttentionProblem,
    arrays: AttentionArrays,
    sides: tuple[Any, ...],
    output: torch.Tensor,
    lse: torch.Tensor,
    *,
    tiles: Tiles,
    **more: torch.Tensor | None,
) -> Tensors:
    mask, seen = arrays.mask, None
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = mask.view(torch.uint8)
        elif mask.dtype not in (torch.float16, torch.float32):
            mask = mask.float()
        mask = mask[(None,) * (4 - mask.ndim)]
        seen = seen_tiles(problem, mask, tiles.rows, tiles.keys)
        mask = mask.expand(problem.batch, problem.q_heads, problem.q_len, problem.kv_len)
    sinks, slopes = arrays.sinks, arrays.alibi_slopes
    query, key, value = map(_readable, sides)
    return Tensors(
        query=query,
        key=key,
        value=value,
        output=output,
        lse=lse,
        mask=mask,
        seen=seen,
        sinks=None if sinks is None else sinks.float().contiguous(),
        slopes=None if slopes is None else slopes.float().contiguous(),
        **more,
    )


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose rows can be read in pieces of 16 bytes: itself, or a copy."""
    steps = tensor.stride()
    fits = steps[3] == 1 and tensor.data_ptr() % ALIGNMENT == 0 and steps[2] < 2**31
    fits = fits and all(
        step * tensor.element_size() % ALIGNMENT == 0
        for step, size in zip(steps[:3], tensor.shape[:3], strict=True)
        if size > 1
    )
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def _heads_first(tensor: torch.Tensor) -> torch.Tensor:
    """Return (length, heads, width) as one batch of (heads, length, width), a view."""
    return tensor.transpose(0, 1)[None]


def _run(chip: Chip, problem: AttentionProblem, tensors: Tensors, plan: "CudaPlan") -> None:
    """Launch the kernel, and the one that merges parts where there are any."""
    tiles, device = plan.tiles, tensors.query.device
    variant = _variant(chip, problem, tensors, plan)
    call = _state(chip, problem, tensors, plan)
    index = device.index or 0
    architecture = torch.cuda.get_device_capability(device)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        lines = tensors.lse.numel()
        if plan.splits > 1:
            # kept until both launches are on the stream, which orders what takes their place
            part_output = tensors.lse.new_empty((plan.splits, lines, problem.value_dim))
            part_lse = tensors.lse.new_empty((plan.splits, lines))
            call.part_output, call.part_lse = part_output.data_ptr(), part_lse.data_ptr()
        grid = (-(-problem.group * problem.q_len // tiles.rows),
                problem.kv_heads * problem.batch, plan.splits)  # fmt: skip
        kernel = _kernel(variant, architecture, "attention", index)
        kernel.launch(grid, 32 * tiles.warps, stream, [call])
        if plan.splits > 1:
            kernel = _kernel(variant, architecture, "merge", index)
            blocks = -(-lines // MERGE_LINES)
            parts, total = ctypes.c_int(plan.splits), ctypes.c_longlong(lines)
            kernel.launch((blocks, 1, 1), 32 * MERGE_LINES, stream, [call, parts, total])


@cache
def _kernel(variant: Variant, capability: tuple[int, int], name: str, device: int) -> Kernel:
    code = build(variant, 10 * capability[0] + capability[1], name)
    return load(code, name, device, variant.tiles.shared_bytes if name == "attention" else 0)


def _variant(chip: Chip, problem: AttentionProblem, tensors: Tensors, plan: "CudaPlan") -> Variant:
    mask = "none"
    if tensors.mask is not None:
        mask = str(tensors.mask.dtype).removeprefix("torch.").replace("uint8", "boolean")
    return Variant(
        chip=chip,
        tiles=plan.tiles,
        head_dim=problem.head_dim,
        value_dim=problem.value_dim,
        mask=mask,
        general=_is_general(problem),
        softcap=problem.softcap is not None,
        alibi=problem.alibi,
        packed=tensors.spans is not None,
        paged=tensors.tables is not None,
        parts=plan.splits > 1,
    )


def _is_general(problem: AttentionProblem) -> bool:
    """Return whether scores take more than a positive factor."""
    return bool(
        problem.softcap or problem.alibi or problem.mask == "additive" or problem.scale <= 0
    )


def _state(chip: Chip, problem: AttentionProblem, tensors: Tensors, plan: "CudaPlan") -> Call:
    """Return a call as its kernel takes it; parts are for the launch to add."""
    left, right = problem.window or (-1, -1)
    right = 0 if problem.causal else right
    positions = tensors.lse.shape[-1]
    call = Call(
        batch=problem.batch,
        q_heads=problem.q_heads,
        kv_heads=problem.kv_heads,
        group=problem.group,
        q_len=problem.q_len,
        kv_len=problem.kv_len,
        left=min(left, UNBOUNDED) if left >= 0 else UNBOUNDED,
        right=min(right, UNBOUNDED) if right >= 0 else UNBOUNDED,
        splits=plan.splits,
        scale=problem.scale,
        softcap=problem.softcap or 0.0,
        query_factor=1.0,
        parts_step=tensors.lse.numel(),
    )
    if chip.half_scores and 0 < abs(problem.scale) < 1:
        call.query_factor = 2.0 ** math.floor(math.log2(abs(problem.scale)))
        call.scale = problem.scale / call.query_factor
    for name in ("query", "key", "value", "output", "lse", "mask", "seen", "sinks", "slopes",
                 "spans", "tables"):  # fmt: skip
        tensor = getattr(tensors, name)
        setattr(call, name, None if tensor is None else tensor.data_ptr())
    for name in ("query", "key", "value", "output", "lse"):
        _fill(getattr(call, f"{name}_step"), getattr(tensors, name).stride()[:3])
    _fill(call.part_step, (problem.q_heads * positions, positions, 1))
    if tensors.mask is not None:
        _fill(call.mask_step, tensors.mask.stride())
    if tensors.seen is not None:
        _fill(call.seen_step, tensors.seen.stride()[:3])
    if tensors.slopes is not None and tensors.slopes.ndim == 2:
        call.slope_batch = tensors.slopes.shape[1]
    if tensors.tables is not None:
        call.table_width, call.block_size = tensors.tables.shape[1], tensors.key.shape[2]
    return call


def _fill(array: Any, values: tuple[int, ...]) -> None:
    for i, value in enumerate(values):
        array[i] = value
