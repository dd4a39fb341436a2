"""Ours without one of its parts at a time."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tesseral.attention import attention
from tesseral.attention.problem import AttentionArrays, state_problem
from tesseral.attention.registry import BACKENDS
from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.inputs import Inputs, Runner, States
from tesseral.bench.attention.runners import ours

Prepared = tuple[Inputs, Runner]

REGISTER_ROWS = 12
"""Query rows that the widest register tile holds: with strips of no more, keys are read and packed
anew for every few queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """One part of ours that is left out.

    Attributes
    ----------
    name : str
        What is done instead.
    case : Case
        Where.
    prepare : callable
        Given the inputs of the case, returns those of the call without the part, and how it is
        made; what it does is not timed.
    """

    name: str
    case: Case
    prepare: Callable[[Inputs], Prepared]


def _one_level(inputs: Inputs) -> Prepared:
    def run(case: Case, query: Tensor, key: States, value: States) -> Any:
        arrays = AttentionArrays(query=query, key=key, value=value)
        problem = state_problem(
            arrays, is_causal=case.causal, scale=None, window=None, softcap=None
        )
        # each backend has a plan of its own kind
        backend: Any = BACKENDS.choose(problem)
        plan = backend.plan(problem)
        strip = {"q_tile": REGISTER_ROWS, "strip_rows": REGISTER_ROWS * problem.group}
        known = {field.name for field in fields(plan)}
        plan = replace(plan, **{name: rows for name, rows in strip.items() if name in known})
        return backend.forward(problem, arrays, plan=plan)[0]

    return inputs, run


def _mask_as_array(inputs: Inputs) -> Prepared:
    q_len, kv_len = inputs.query.shape[2], inputs.states[0][0].shape[2]
    mask = torch.ones(q_len, kv_len, dtype=torch.bool).tril(kv_len - q_len)

    def run(_: Case, query: Tensor, key: States, value: States) -> Any:
        return attention(query, key, value, mask=mask)

    return inputs, run


def _every_head_its_own_keys(inputs: Inputs) -> Prepared:
    heads = inputs.query.shape[1]

    def repeated(states: Any) -> Tensor:
        whole: Tensor = states.repeat_interleave(heads // states.shape[1], dim=1)
        return whole

    copies = tuple((repeated(key), repeated(value)) for key, value in inputs.states)
    return Inputs(query=inputs.query, states=copies), ours


ABLATIONS = (
    Ablation(
        name="tiles of one level: no strip of queries shares its keys in the near cache",
        case=Case(q_len=4096, kv_len=4096, q_heads=8, kv_heads=8, dtype="bfloat16"),
        prepare=_one_level,
    ),
    Ablation(
        name="the mask as an array of booleans, not as a rule",
        case=Case(q_len=4096, kv_len=4096, q_heads=8, kv_heads=8, dtype="bfloat16", causal=True),
        prepare=_mask_as_array,
    ),
    Ablation(
        name="keys repeated for every query head, not shared in a group",
        case=Case(q_len=1, kv_len=32768, q_heads=32, kv_heads=8, dtype="bfloat16"),
        prepare=_every_head_its_own_keys,
    ),
)
