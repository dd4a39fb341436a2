"""Launching the backward kernels: keys and values first, then queries, then sinks."""

from typing import Any

import torch
import triton

from tesseral.attention.backends.triton.kernels.backward import (
    attention_keys_backward_kernel,
    attention_queries_backward_kernel,
    row_sums_kernel,
)
from tesseral.attention.backends.triton.tiles import (
    PRECISION,
    band_of,
    dense_mask,
    describe,
    neighbours,
    slopes_of,
)
from tesseral.attention.backends.triton.tuning import TileConfig, padded
from tesseral.attention.backward import LARGE, Forward, Gradients
from tesseral.attention.problem import AttentionArrays, AttentionProblem


def differentiates(problem: AttentionProblem, forward: Forward, into: Gradients) -> bool:
    """Return whether the kernels give all gradients that are wanted, exactly enough.

    They sum no gradients of masks and slopes; and where additive masks make an lse so large
    that float32 cannot tell its fraction, weights must be summed again.
    """
    if into.mask is not None or into.alibi_slopes is not None:
        return False
    if 0 in (problem.batch, problem.q_len, problem.kv_len):
        return False
    if problem.mask != "additive":
        return True
    return not bool(((forward.lse.abs() > LARGE) & forward.lse.isfinite()).any())


def run_gradients(
    problem: AttentionProblem,
    forward: Forward,
    grad_output: torch.Tensor,
    grad_lse: torch.Tensor | None,
    into: Gradients,
    config: TileConfig,
) -> None:
    """Write the gradients of a dense call; see :func:`tesseral.attention.backward.backward`.

    Those of masks and slopes are not written: ask :func:`differentiates` first.
    """
    lse = forward.lse.contiguous()
    wanted = (into.query, into.key, into.value)
    given = (forward.query, forward.key, forward.value)
    query, key, value = (
        torch.empty_like(source, memory_format=torch.contiguous_format)
        if result is None or result.stride(-1) != 1
        else result
        for result, source in zip(wanted, given, strict=True)
    )
    delta = _row_sums(problem, forward, grad_output, grad_lse)
    arrays = AttentionArrays(
        query=forward.query,
        key=forward.key,
        value=forward.value,
        mask=forward.mask,
        alibi_slopes=forward.alibi_slopes,
    )
    call = _Call(problem, arrays, grad_output, config)
    if into.key is not None or into.value is not None:
        k_tiles = triton.cdiv(problem.kv_len, config.k_tile)
        call.launch(
            attention_keys_backward_kernel,
            k_tiles * problem.kv_heads * problem.batch,
            (lse, delta),
            (key, value),
        )
    if into.query is not None:
        q_tiles = triton.cdiv(problem.q_len, config.q_tile)
        call.launch(
            attention_queries_backward_kernel,
            q_tiles * problem.q_heads * problem.batch,
            (lse, delta),
            (query,),
        )
    for result, written in zip(wanted, (query, key, value), strict=True):
        if result is not None and result is not written:
            result.copy_(written)
    if into.sinks is not None and forward.sinks is not None:
        weights = torch.exp(forward.sinks.to(lse.dtype)[:, None] - lse)
        weights.masked_fill_(lse == -torch.inf, 0.0)  # a row that saw nothing, not even a sink
        into.sinks.sub_(weights.mul_(delta).sum((0, 2)))


class _Call:
    """What both kernels take alike."""

    def __init__(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        grad_output: torch.Tensor,
        config: TileConfig,
    ) -> None:
        self.problem, self.config = problem, config
        d_pad, dv_pad = padded(problem.head_dim), padded(problem.value_dim)
        sources: tuple[tuple[Any, int, int], ...] = (
            (arrays.query, config.q_tile, d_pad),
            (arrays.key, config.k_tile, d_pad),
            (arrays.value, config.k_tile, dv_pad),
            (grad_output, config.q_tile, dv_pad),
        )
        self.tensors: list[Any] = [source[0] for source in sources]
        self.sources: list[Any] = self.tensors
        if config.describe:
            self.sources = [describe(*source) for source in sources]
        else:
            self.sources = self.tensors = [neighbours(tensor) for tensor in self.tensors]
        self.mask, self.mask_steps = dense_mask(problem, arrays)
        self.slopes, self.slope_batch = slopes_of(arrays)

    def launch(
        self,
        kernel: Any,
        programs: int,
        rows: tuple[torch.Tensor, ...],
        results: tuple[torch.Tensor, ...],
    ) -> None:
        problem, config = self.problem, self.config
        kernel[(programs,)](
            *self.sources,
            *rows,
            self.mask,
            self.slopes,
            *results,
            *(tensor.stride()[:3] for tensor in (*self.tensors, *results)),
            self.mask_steps,
            self.slope_batch,
            problem.q_heads,
            problem.kv_heads,
            problem.q_len,
            problem.kv_len,
            scale=problem.scale,
            softcap=problem.softcap or 0.0,
            MASK=problem.mask,
            SOFTCAP=problem.softcap is not None,
            ALIBI=problem.alibi,
            DESCRIBED=config.describe,
            PRECISION=PRECISION,
            BLOCK_M=config.q_tile,
            BLOCK_N=config.k_tile,
            HEAD_DIM=problem.head_dim,
            D_PAD=padded(problem.head_dim),
            VALUE_DIM=problem.value_dim,
            DV_PAD=padded(problem.value_dim),
            STAGES=config.stages,
            num_warps=config.warps,
            num_stages=config.stages,
            **band_of(problem),
        )


def _row_sums(
    problem: AttentionProblem,
    forward: Forward,
    grad_output: torch.Tensor,
    grad_lse: torch.Tensor | None,
) -> torch.Tensor:
    """Return what is taken from every gradient of a row's weights: (batch, q_heads, q_len)."""
    block = 32
    delta = forward.lse.new_empty(forward.lse.shape)
    output, grad_output = neighbours(forward.output), neighbours(grad_output)
    tiles = triton.cdiv(problem.q_len, block)
    row_sums_kernel[(tiles * problem.q_heads * problem.batch,)](
        output,
        grad_output,
        grad_lse,
        delta,
        output.stride()[:3],
        grad_output.stride()[:3],
        (0, 0, 0) if grad_lse is None else grad_lse.stride(),
        problem.q_heads,
        problem.q_len,
        GRAD_LSE=grad_lse is not None,
        BLOCK_M=block,
        VALUE_DIM=problem.value_dim,
        DV_PAD=padded(problem.value_dim),
        num_warps=4,
    )
    return delta
