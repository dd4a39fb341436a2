"""Arrays to call attention with, and the calls."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tesseral.bench.attention.cases import Case
from tesseral.core import PackedTensor
from tesseral.quantization.kvcodec import encode_heads
from tesseral.runtime.cpu import cache_sizes
from tesseral.runtime.machine import machine_record

States = Tensor | PackedTensor
Runner = Callable[[Case, Tensor, Any, Any], Any]
"""Takes query, key and value; returns the output."""

_BLOCK = 2**20 + 7  # random numbers that are drawn; longer arrays repeat them
_LEAST_ROTATION = 2**28
_MOST_COPIES = 256
_MEMORY_PART = 1 / 8  # of main memory: what the copies of one case take at most


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """The arrays of a case.

    Attributes
    ----------
    query : Tensor of shape (batch, q_heads, q_len, head_dim)
    states : tuple of pairs of Tensor or PackedTensor
        Keys and values of shape (batch, kv_heads, kv_len, head_dim), in equal copies that calls
        take in turn.
    """

    query: Tensor
    states: tuple[tuple[States, States], ...]

    def memory(self) -> list[list[np.ndarray[Any, Any]]]:
        """Return what keys and values lie in, for every copy: bytes of numbers or of codes."""
        return [[_bytes_of(side) for side in pair] for pair in self.states]


def make_inputs(case: Case, *, copies: int | None = None) -> Inputs:
    """Return normal random arrays.

    Who decodes reads the cache of another layer with every call, so there are by default as many
    copies of keys and values as the caches of this machine cannot hold.
    """
    kv_shape = (case.batch, case.kv_heads, case.kv_len, case.head_dim)
    query = _random((case.batch, case.q_heads, case.q_len, case.head_dim), case.dtype, seed=0)
    first = [_store(_random(kv_shape, case.dtype, seed=seed), case.kv_bits) for seed in (1, 2)]
    rest = [(_copy(first[0]), _copy(first[1])) for _ in range((copies or _copies(case)) - 1)]
    return Inputs(query=query, states=((first[0], first[1]), *rest))


def make_call(runner: Runner, case: Case, inputs: Inputs) -> Callable[[], Any]:
    """Return a function that makes the next call."""
    turns = cycle(inputs.states)

    @torch.no_grad()
    def call() -> Any:
        return runner(case, inputs.query, *next(turns))

    return call


def _random(shape: tuple[int, ...], dtype: str, *, seed: int) -> Tensor:
    block = torch.randn(_BLOCK, generator=torch.Generator().manual_seed(seed))
    block = block.to(getattr(torch, dtype))
    array = torch.empty(shape, dtype=block.dtype)
    flat = array.view(-1)
    for start in range(0, flat.numel(), _BLOCK):
        part = flat[start : start + _BLOCK]
        part.copy_(block[: part.numel()])
    return array


def _store(x: Tensor, bits: int | None) -> States:
    """Return rows as the quantised cache of a language model stores them."""
    return x if bits is None else encode_heads(x, torch.ones(2), bits)


def _bytes_of(states: States) -> np.ndarray[Any, Any]:
    data = states if isinstance(states, Tensor) else states.data
    found: np.ndarray[Any, Any] = data.view(torch.uint8).numpy()
    return found


def _copy(states: States) -> States:
    if isinstance(states, Tensor):
        return states.clone()
    return PackedTensor(
        data=states.data.clone(),
        scale=states.scale.clone(),
        offset=states.offset.clone(),
        bits=states.bits,
        length=states.length,
    )


def _copies(case: Case) -> int:
    if not case.decoding:
        return 1
    wanted = max(2 * cache_sizes().l3, _LEAST_ROTATION)
    memory = machine_record().memory_bytes
    if memory is not None:
        wanted = min(wanted, int(memory * _MEMORY_PART))
    return min(_MOST_COPIES, max(1, -(-wanted // case.kv_bytes)))
