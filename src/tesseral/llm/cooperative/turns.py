"""Sequences in groups that take turns: the CPU attends for one, the device computes for another."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tesseral._errors import ParameterError
from tesseral.llm.cache_argument import CACHE
from tesseral.llm.cooperative.cache import CooperativeCache
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.plan import MemoryPlan


def continue_in_turns(
    model: PreTrainedModel,
    tokens: Tensor,
    plan: MemoryPlan,
    max_new_tokens: int,
    *,
    groups: int = 2,
    link: Link | None = None,
) -> Tensor:
    """Continue a batch greedily, in groups whose steps overlap.

    In one step of one group the device waits while the CPU attends. So every group has a thread
    and a stream of its own: while the CPU attends for one, the device runs layers of another.
    Prompts are read one group after the other.

    Parameters
    ----------
    model : transformers model
        With ``attn_implementation="tesseral"``.
    tokens : integer tensor of shape (batch, length)
        Prompts of one length.
    plan : MemoryPlan
        For the whole batch.
    max_new_tokens : int
        Tokens to generate.
    groups : int
        Divides the batch.
    link : Link, optional
        As of :class:`CooperativeCache`.

    Returns
    -------
    tensor of shape (batch, length + max_new_tokens)

    Raises
    ------
    ParameterError
        If the groups do not divide the batch, or the plan is for another.
    """
    batch = tokens.shape[0]
    if batch % groups or plan.batch != batch:
        raise ParameterError(
            f"continue_in_turns: {groups} groups must divide {batch} sequences, and the plan be "
            f"for as many; it is for {plan.batch}."
        )
    with caches_in_turns(model, plan, groups, link) as caches:
        firsts = [
            _read(model, rows, cache, plan.chunk)
            for rows, cache in zip(tokens.chunk(groups), caches, strict=True)
        ]
        found = take_turns(model, firsts, caches, max_new_tokens)
    return torch.cat([tokens, torch.cat(found)], dim=1)


@contextmanager
def caches_in_turns(
    model: PreTrainedModel, plan: MemoryPlan, groups: int, link: Link | None = None
) -> Iterator[list[CooperativeCache]]:
    """Give a cache to each group of sequences; one thread runs the CPU's attention of all."""
    part = share(plan, groups)
    with ThreadPoolExecutor(1, "attention") as cpu:
        yield [
            CooperativeCache(model, part, link=link or Link(model.device), cpu=cpu)
            for _ in range(groups)
        ]


def take_turns(
    model: PreTrainedModel, firsts: list[Tensor], caches: list[CooperativeCache], count: int
) -> list[Tensor]:
    """Return the first token of each group and those after it, ``count`` in all, greedily."""
    with ThreadPoolExecutor(len(caches), "group") as threads:
        return list(threads.map(partial(_continue, model, count), firsts, caches))


def share(plan: MemoryPlan, groups: int) -> MemoryPlan:
    """Return the plan of one of several groups of sequences, which share the memory."""
    return replace(
        plan,
        batch=plan.batch // groups,
        layer_bytes=plan.layer_bytes // groups,
        window_bytes=plan.window_bytes // groups,
        strip_bytes=plan.strip_bytes // groups,
    )


@torch.inference_mode()
def _read(model: Any, tokens: Tensor, cache: CooperativeCache, chunk: int) -> Tensor:
    """Return the token after each prompt, of shape (batch, 1)."""
    logits = tokens
    for piece in tokens.split(chunk, dim=1):
        logits = model(piece, **{CACHE: cache}, logits_to_keep=1).logits
    return logits[:, -1:].argmax(-1)


@torch.inference_mode()
def _continue(model: Any, count: int, token: Tensor, cache: CooperativeCache) -> Tensor:
    """Return ``token`` and those after it, ``count`` in all, on a stream of its own."""
    found = [token]
    with _own_stream(model.device):
        while len(found) < count:
            logits = model(found[-1], **{CACHE: cache}).logits
            found.append(logits[:, -1:].argmax(-1))
    return torch.cat(found, dim=1)


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Give the device's work inside to a stream of its own, between what is before and after."""
    if device.type != "cuda":
        yield
        return
    stream: Any = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
