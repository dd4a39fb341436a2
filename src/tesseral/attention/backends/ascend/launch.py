"""Launching the kernels on torch tensors: workspaces, the M-mask, one program a core."""

import contextlib
from functools import lru_cache
from typing import Any

import torch
from array_api_compat import is_torch_array

from tesseral.attention.backends.ascend.kernels import attention_rounds_kernel, merge_parts_kernel
from tesseral.attention.backends.ascend.plan import AscendPlan, constants, padded
from tesseral.attention.mask import Band, make_band
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.core._arrays import Array


def run_dense(
    problem: AttentionProblem, arrays: AttentionArrays, plan: AscendPlan
) -> tuple[Array, Array]:
    """Return output and lse of a dense call; see the backend for shapes."""
    given = (arrays.query, arrays.key, arrays.value)
    if not is_torch_array(arrays.query):  # only the interpreter is given NumPy arrays
        output, lse = _run(problem, tuple(torch.asarray(array) for array in given), plan)
        return output.numpy(), lse.numpy()
    with _current(arrays.query.device):
        return _run(problem, given, plan)


def _run(
    problem: AttentionProblem, given: tuple[Any, ...], plan: AscendPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = (_neighbours(tensor) for tensor in given)
    shape = (problem.batch, problem.q_heads, problem.q_len)
    output = query.new_empty((*shape, problem.value_dim))
    lse = query.new_empty(shape, dtype=torch.float32)
    if lse.numel() == 0:
        return output, lse
    if plan.parts == 1:
        _launch(problem, query, key, value, output, lse, plan)
        return output, lse
    parts = (*shape[:2], plan.parts)  # one query, so its axis makes room for the parts
    found = query.new_empty((*parts, problem.value_dim), dtype=torch.float32)
    logs = query.new_empty(parts, dtype=torch.float32)
    _launch(problem, query, key, value, found, logs, plan)
    merge_parts_kernel[(lse.numel(),)](
        found,
        logs,
        output,
        lse,
        plan.parts,
        VALUE_DIM=problem.value_dim,
        DV_PAD=padded(problem.value_dim),
    )
    return output, lse


def _launch(
    problem: AttentionProblem,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    plan: AscendPlan,
) -> None:
    """Write output (batch, q_heads, q_len or parts, value_dim) and lse without its last axis."""
    heads, group, q_len = problem.q_heads, problem.group, problem.q_len
    band = make_band(q_len, problem.kv_len, is_causal=problem.causal, window=problem.window)
    steps = [query.stride()[:3], output.stride()[:3], lse.stride()]
    if plan.folded:
        # the query heads of a group are the rows of a tile, all at the place of the one query
        heads, group, q_len = problem.kv_heads, 1, problem.group
        steps = [(batch, head * q_len, head) for batch, head, _ in steps]
    q_steps, out_steps, lse_steps = steps
    part_steps = (output.stride(2), lse.stride(2)) if plan.parts > 1 else (0, 0)
    first, stop = _seen_by_all(problem, band) if plan.folded else (0, problem.kv_len)
    key, value = key[:, :, first:stop], value[:, :, first:stop]
    kv_len = stop - first
    q_tiles = -(-q_len // plan.q_tile)
    space = _Workspace(query, value, plan, padded(problem.value_dim))
    attention_rounds_kernel[(plan.programs,)](
        query,
        key,
        value,
        _m_mask(plan.k_tile, query.device),
        output,
        lse,
        space.scores,
        space.weights,
        space.sums,
        space.rows,
        *q_steps,
        *key.stride()[:3],
        *value.stride()[:3],
        *out_steps[:2],
        part_steps[0],
        out_steps[2],
        *lse_steps[:2],
        part_steps[1],
        lse_steps[2],
        q_tiles * heads * problem.batch * plan.parts,
        problem.batch,
        heads,
        group,
        q_tiles,
        plan.parts,
        _up(-(-kv_len // plan.parts), plan.basic),
        q_len,
        kv_len,
        band.lower or 0,
        band.upper or 0,
        problem.scale,
        **constants(problem, plan, band, kv_len),
    )


class _Workspace:
    """What matrix and vector units exchange, for every program."""

    def __init__(
        self, query: torch.Tensor, value: torch.Tensor, plan: AscendPlan, dv_pad: int
    ) -> None:
        tile = (plan.programs, plan.q_tile)

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return query.new_empty((*tile, *shape), dtype=dtype)

        self.scores = new(plan.ahead + 1, plan.k_tile)
        self.weights = new(2, plan.k_tile, dtype=value.dtype)
        self.sums = new(3, dv_pad)
        self.rows = new(4)


def _seen_by_all(problem: AttentionProblem, band: Band) -> tuple[int, int]:
    """Return the keys that the one query of a call sees."""
    first = 0 if band.lower is None else min(max(0, band.lower), problem.kv_len)
    stop = problem.kv_len if band.upper is None else min(problem.kv_len, band.upper + 1)
    return first, max(first, stop)


@lru_cache(maxsize=8)
def _m_mask(block: int, device: torch.device) -> torch.Tensor:
    """Return the M-mask: 1 where the column is not after the row, (2 block, 2 block)."""
    return torch.ones((2 * block, 2 * block), dtype=torch.int8).tril_().to(device)


def _neighbours(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose columns are neighbours; a copy where they are not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _current(device: torch.device) -> Any:
    """Return a context in which kernels are launched on a device."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.npu.device(device)  # type: ignore[attr-defined]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
