"""Inputs, plain peers and the oracle that the attention tests share."""

import contextlib
import functools

import numpy as np
import pytest
import torch

from tesseral._errors import BackendError
from tesseral.attention.backends.blockwise import BlockwiseBackend
from tesseral.attention.backends.reference import ReferenceBackend
from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionArrays, state_problem

SMALL_TILES = TilePlan(batch_tile=1, head_tile=1, q_tile=8, k_tile=16, workspace_bytes=0)


def make_inputs(
    q_len, kv_len, *, batch=2, q_heads=4, kv_heads=2, head_dim=16, value_dim=None, order="random"
):
    """Return float64 query, key and value; with rising keys each tile outweighs the last."""
    rng = np.random.default_rng([q_len, kv_len, head_dim, batch])
    query = rng.standard_normal((batch, q_heads, q_len, head_dim))
    key = rng.standard_normal((batch, kv_heads, kv_len, head_dim))
    value = rng.standard_normal((batch, kv_heads, kv_len, value_dim or head_dim))
    if order == "rising":
        key = np.abs(key) * np.linspace(0.1, 4.0, kv_len)[:, None]
        query = np.abs(query)
    return query, key, value


def run(
    backend, query, key, value, *, plan=None, mask=None, sinks=None, alibi_slopes=None, **rules
):
    """Return output and lse of ``backend``, with ``plan`` in place of its own."""
    arrays = AttentionArrays(
        query=query, key=key, value=value, mask=mask, sinks=sinks, alibi_slopes=alibi_slopes
    )
    rules = {"is_causal": False, "scale": None, "window": None, "softcap": None, **rules}
    problem = state_problem(arrays, **rules)
    if plan is None:
        return backend.forward(problem, arrays)
    return backend.forward(problem, arrays, plan)


def oracle(*arrays, **options):
    """Return output and lse of the definition, in float64 NumPy."""
    arrays = [to_float64(array) for array in arrays]
    options = {name: to_float64(option) for name, option in options.items()}
    return run(ReferenceBackend(), *arrays, **options)


def blockwise(*arrays, plan=SMALL_TILES, **options):
    """Return output and lse by tiles small enough for every path to be taken."""
    return run(BlockwiseBackend(), *arrays, plan=plan, **options)


def plain(query, key, value, bias=None, *, softcap=None):
    """Attention as one writes it down, untiled, every step in the type of the inputs (torch)."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT * query.shape[-1] ** -0.5
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = torch.exp(scores - top)
    return weights @ value / weights.sum(-1, keepdim=True).clamp(min=1)


@contextlib.contextmanager
def skip_refusals():
    """Skip a test whose backend, asked for by name, says that it cannot run the call."""
    try:
        yield
    except BackendError as refusal:
        pytest.skip(str(refusal).splitlines()[-1].strip())


def to_float64(thing):
    """Return an array of any framework and type as float64 NumPy; leave anything else alone."""
    if isinstance(thing, torch.Tensor):
        thing = thing.detach()
        return thing.numpy() if thing.dtype == torch.bool else thing.to(torch.float64).numpy()
    if isinstance(thing, np.ndarray) and thing.dtype != np.bool_:
        return thing.astype(np.float64)
    return thing


def visible(q_len, kv_len, *, is_causal=False, window=None, align="bottom-right"):
    """Return the (q_len, kv_len) mask entry by entry, straight from the words of the rules."""
    return _visible(q_len, kv_len, is_causal, window, align).copy()


@functools.cache
def _visible(q_len, kv_len, is_causal, window, align):
    offset = {"bottom-right": kv_len - q_len, "top-left": 0}.get(align, align)
    left, right = window or (-1, -1)
    seen = np.ones((q_len, kv_len), dtype=bool)
    for i in range(q_len):
        for j in range(kv_len):
            ahead = j - (i + offset)
            if is_causal and ahead > 0:
                seen[i, j] = False
            if left >= 0 and -ahead > left:
                seen[i, j] = False
            if right >= 0 and ahead > right:
                seen[i, j] = False
    return seen
