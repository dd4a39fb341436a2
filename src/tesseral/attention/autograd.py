"""Attention recorded by torch's autograd, whichever backend runs it. Imports torch."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from tesseral._errors import BackendError
from tesseral.attention.backward import Forward, Gradients, backward, compute_dtype
from tesseral.attention.call import run
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.registry import AttentionBackend
from tesseral.attention.sequences import Sequences, heads_first
from tesseral.core import PackedTensor

NAMES = ("query", "key", "value", "mask", "sinks", "alibi_slopes")
"""The arrays of a call, in the order in which autograd is handed them."""


def run_recorded(
    backend: AttentionBackend,
    problem: AttentionProblem,
    arrays: AttentionArrays,
    sequences: Sequences | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and lse of torch arrays, through which gradients flow.

    The backend runs unrecorded; what is kept for the backward pass is the arrays, the output
    and the lse. Gradients of quantised or paged keys and values are refused, in the backward
    pass, so that inference need not be wrapped in ``torch.no_grad``.
    """
    tensors = [getattr(arrays, name) for name in NAMES]
    dense = [None if isinstance(tensor, PackedTensor) else tensor for tensor in tensors]
    call = _Call(backend=backend, problem=problem, arrays=arrays, sequences=sequences)
    output, lse = _Attention.apply(call, *dense)  # type: ignore[no-untyped-call]
    return output, lse


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    backend: AttentionBackend
    problem: AttentionProblem
    arrays: AttentionArrays
    sequences: Sequences | None

    @property
    def refusal(self) -> str:
        """Why there is no backward pass; empty where there is one."""
        what = ""
        if not self.problem.key_format == self.problem.value_format == "dense":
            what = "quantised keys and values; pass them dequantised"
        elif self.sequences is not None and self.sequences.block_tables is not None:
            what = "keys and values in a pool of blocks; pass them dense or packed"
        return what and f"attention: gradients do not pass through {what}, or use torch.no_grad()."


class _Attention(Function):
    """Output and lse of a call, and their gradients."""

    @staticmethod
    def forward(call: _Call, *dense: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        given = {name: part for name, part in zip(NAMES, dense, strict=True) if part is not None}
        arrays = dataclasses.replace(call.arrays, **given)
        return run(call.backend, call.problem, arrays, call.sequences)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        call, *dense = inputs
        ctx.problem, ctx.sequences, ctx.refusal = call.problem, call.sequences, call.refusal
        ctx.run = getattr(call.backend, "backward", backward)
        ctx.set_materialize_grads(False)
        if not ctx.refusal:
            ctx.save_for_backward(*dense, *output)

    @staticmethod
    def backward(
        ctx: Any, grad_output: torch.Tensor | None, grad_lse: torch.Tensor | None
    ) -> tuple[Any, ...]:
        if ctx.refusal:
            raise BackendError(ctx.refusal)
        *dense, output, lse = ctx.saved_tensors
        if grad_output is None and grad_lse is None:
            return (None,) * (1 + len(NAMES))
        with torch.no_grad():
            forward = Forward(**dict(zip(NAMES, dense, strict=True)), output=output, lse=lse)
            into = _allocate(ctx.problem, forward, ctx.needs_input_grad[1:])
            if grad_output is None:
                grad_output = torch.zeros_like(output)
            if ctx.sequences is None:
                ctx.run(ctx.problem, forward, grad_output, grad_lse, into)
            else:
                _backward_each(
                    ctx.run, ctx.problem, ctx.sequences, forward, grad_output, grad_lse, into
                )
            gradients = [
                _finished(into, name, like) for name, like in zip(NAMES, dense, strict=True)
            ]
        if torch.is_grad_enabled():  # with create_graph
            gradients = _seal(gradients, [*dense, grad_output, grad_lse])
        return None, *gradients


def _seal(
    gradients: list[torch.Tensor | None], sources: list[torch.Tensor | None]
) -> list[torch.Tensor | None]:
    """Return gradients that may be used but not be differentiated by what they came from."""
    there = [grad for grad in gradients if grad is not None]
    sealed = iter(_Sealed.apply(len(there), *there, *sources))  # type: ignore[no-untyped-call]
    return [None if grad is None else next(sealed) for grad in gradients]


class _Sealed(Function):
    """The first tensors as they are; the others only make autograd record it."""

    @staticmethod
    def forward(count: int, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[:count])

    @staticmethod
    def setup_context(*_: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(*_: Any) -> Any:
        raise BackendError(
            "attention: gradients cannot be differentiated again; there is no second derivative."
        )


def _allocate(problem: AttentionProblem, forward: Forward, wanted: Sequence[bool]) -> Gradients:
    """Return room for the gradients that are wanted; those of mask, sinks and slopes are zero."""
    room: dict[str, torch.Tensor | None] = dict.fromkeys(NAMES)
    for name, needed in zip(NAMES, wanted, strict=True):
        like = getattr(forward, name)
        if needed and name in ("query", "key", "value"):
            room[name] = torch.empty_like(like)
        elif needed:
            room[name] = torch.zeros_like(like, dtype=compute_dtype(problem))
    return Gradients(**room)


def _backward_each(
    run_one: Callable[..., None],
    problem: AttentionProblem,
    sequences: Sequences,
    forward: Forward,
    grad_output: torch.Tensor,
    grad_lse: torch.Tensor | None,
    into: Gradients,
) -> None:
    """Write the gradients of packed sequences, each a dense call of its own."""
    for s, (queries, keys) in enumerate(sequences.spans()):

        def part(array: torch.Tensor | None, span: slice = queries) -> Any:
            return None if array is None else heads_first(array[span])

        def row(array: torch.Tensor | None, s: int = s) -> torch.Tensor | None:
            return array if array is None or array.ndim == 1 else array[s : s + 1]

        run_one(
            dataclasses.replace(
                problem, batch=1, q_len=queries.stop - queries.start, kv_len=keys.stop - keys.start
            ),
            Forward(
                query=part(forward.query),
                key=part(forward.key, keys),
                value=part(forward.value, keys),
                mask=None,
                sinks=forward.sinks,
                alibi_slopes=row(forward.alibi_slopes),
                output=part(forward.output),
                lse=part(forward.lse[..., None])[..., 0],
            ),
            part(grad_output),
            None if grad_lse is None else part(grad_lse[..., None])[..., 0],
            Gradients(
                query=part(into.query),
                key=part(into.key, keys),
                value=part(into.value, keys),
                mask=None,
                sinks=into.sinks,
                alibi_slopes=row(into.alibi_slopes),
            ),
        )


def _finished(into: Gradients, name: str, like: torch.Tensor | None) -> torch.Tensor | None:
    grad = getattr(into, name)
    return None if grad is None or like is None else grad.to(like.dtype)
