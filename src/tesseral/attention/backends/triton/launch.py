"""Running a planned call: results, views that kernels can read, and the device they are on."""

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from array_api_compat import is_torch_array

from tesseral.attention.backends.triton.gradients import differentiates, run_gradients
from tesseral.attention.backends.triton.rows import run_rows
from tesseral.attention.backends.triton.tiles import Results, run_tiles
from tesseral.attention.backends.triton.tuning import choose_tiles
from tesseral.attention.backward import Forward, Gradients, backward
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.sequences import Sequences
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array
from tesseral.runtime.triton import architecture

if TYPE_CHECKING:
    from tesseral.attention.backends.triton.backend import TritonPlan


def run_dense(
    problem: AttentionProblem, arrays: AttentionArrays, plan: "TritonPlan"
) -> tuple[Array, Array]:
    """Return output and lse of a dense call; see the backend for shapes."""
    if not is_torch_array(arrays.query):
        output, lse = run_dense(problem, _in_torch(arrays), plan)
        return output.numpy(), lse.numpy()
    output, lse = _allocate(arrays.query, problem.value_dim)
    if lse.numel():
        _run(problem, arrays, Results(output=output, lse=lse), plan)
    return output, lse


def run_sequences(
    problem: AttentionProblem, arrays: AttentionArrays, sequences: Sequences, plan: "TritonPlan"
) -> tuple[Array, Array]:
    """Return output and lse of packed sequences; see the backend for shapes."""
    if not is_torch_array(arrays.query):
        output, lse = run_sequences(problem, _in_torch(arrays), sequences, plan)
        return output.numpy(), lse.numpy()
    query = arrays.query
    output = query.new_empty((*query.shape[:2], problem.value_dim))
    lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    if lse.numel():
        results = Results(output=_heads_first(output), lse=_heads_first(lse[..., None])[..., 0])
        arrays = _as_one_batch(arrays, paged=sequences.block_tables is not None)
        _run(problem, arrays, results, plan, *_on_device(sequences, query.device))
    return output, lse


def run_backward(
    problem: AttentionProblem,
    forward: Forward,
    grad_output: torch.Tensor,
    grad_lse: torch.Tensor | None,
    into: Gradients,
) -> None:
    """Write the gradients of a dense call, by the kernels where they give all that is wanted."""
    if not differentiates(problem, forward, into):
        backward(problem, forward, grad_output, grad_lse, into)
        return
    config = choose_tiles(problem, "gradients", architecture(problem.device))
    with current(grad_output.device):
        run_gradients(problem, forward, grad_output, grad_lse, into, config)


def _run(
    problem: AttentionProblem,
    arrays: AttentionArrays,
    results: Results,
    plan: "TritonPlan",
    spans: torch.Tensor | None = None,
    tables: torch.Tensor | None = None,
) -> None:
    with current(arrays.query.device):
        if plan.kernel == "tiles":
            run_tiles(problem, arrays, results, plan.config, spans)
        else:
            run_rows(problem, arrays, results, plan.config, plan.splits, spans, tables)


def current(device: torch.device) -> Any:
    """Return a context in which kernels are launched on a device."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def _allocate(query: torch.Tensor, value_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return new results; the output's axes lie in memory as those of the query do."""
    batch, heads, length, _ = query.shape
    lse = query.new_empty((batch, heads, length), dtype=torch.float32)
    if length > 1 and query.stride(1) < query.stride(2):
        return query.new_empty((batch, length, heads, value_dim)).transpose(1, 2), lse
    return query.new_empty((batch, heads, length, value_dim)), lse


def _heads_first(tensor: torch.Tensor) -> torch.Tensor:
    """Return (length, heads, width) as one batch of (heads, length, width), a view."""
    return tensor.transpose(0, 1)[None]


def _as_one_batch(arrays: AttentionArrays, *, paged: bool) -> AttentionArrays:
    """Return packed arrays as one batch, and pools with heads before slots; all views."""

    def turn(array: torch.Tensor) -> torch.Tensor:
        return array.transpose(1, 2) if paged else _heads_first(array)

    return dataclasses.replace(
        arrays,
        query=_heads_first(arrays.query),
        key=_changed(arrays.key, turn),
        value=_changed(arrays.value, turn),
    )


def _in_torch(arrays: AttentionArrays) -> AttentionArrays:
    """Return NumPy arrays, which only the interpreter is given, as tensors."""
    given = {name: getattr(arrays, name) for name in AttentionArrays.__slots__}
    return AttentionArrays(
        **{
            name: None if array is None else _changed(array, torch.asarray)
            for name, array in given.items()
        }
    )


def _changed(array: Any, change: Any) -> Any:
    """Apply a change to an array, or to all that a PackedTensor holds."""
    if not isinstance(array, PackedTensor):
        return change(array)
    offset = None if array.offset is None else change(array.offset)
    return dataclasses.replace(
        array, data=change(array.data), scale=change(array.scale), offset=offset
    )


def _on_device(
    sequences: Sequences, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return where sequences lie, (4, n_sequences), and their tables, in int32 on a device."""
    spans = [sequences.q_starts, sequences.q_lens, sequences.kv_starts, sequences.kv_lens]
    tables = sequences.block_tables
    return (
        torch.from_numpy(np.stack(spans).astype(np.int32)).to(device),
        None if tables is None else torch.from_numpy(tables.astype(np.int32)).to(device),
    )
