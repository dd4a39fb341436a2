"""Attention to keys that lie on several ranks: states gathered and merged, or keys passed on.

A softmax over parts of the keys is merged from their outputs and the logarithms of their
denominators, so a rank attends where keys lie, and outputs travel, whose size does not grow with
them. Where queries are divided, too, keys go round in a ring.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import ShapeError
from tesseral.attention.api import attention
from tesseral.runtime.ranks import Step, check_alike

_GATHERED, _RING = "gathered_attention", "ring_attention"


def gathered_attention(
    query: Tensor,
    key: Any,
    value: Any,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    lengths: Sequence[int] | None = None,
    group: Any = None,
    backend: str | None = None,
) -> Tensor:
    """Return attention of all queries to the keys of all ranks, one after the other.

    For decoding and for queries that every rank has: what is sent is ``q_len`` outputs.

    Parameters
    ----------
    query : tensor of shape (batch, q_heads, q_len, head_dim)
        The same on all ranks. Under ``is_causal`` the last one stands beside the last key of the
        last rank.
    key : tensor or PackedTensor of shape (batch, kv_heads, own_len, head_dim)
        This rank's part of the keys; parts may differ in length, and be empty.
    value : tensor or PackedTensor of shape (batch, kv_heads, own_len, value_dim)
    is_causal, scale, softcap, backend
        As for :func:`tesseral.attention.attention`.
    lengths : sequence of int, optional
        Keys on each rank; ranks ask one another by default, which waits for the device.
    group : ProcessGroup, optional
        The ranks; all by default.

    Returns
    -------
    tensor of shape (batch, q_heads, q_len, value_dim)
        The same bits on every rank: parts are merged in the order of ranks, in float32.

    Raises
    ------
    ShapeError
        If ``lengths`` are not those of the keys here.
    DistributedError
        If another rank fails.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    own = int(key.shape[2])
    if lengths is None:
        lengths = _asked(own, size, group)
    if len(lengths) != size or lengths[rank] != own:
        raise ShapeError(
            f"{_GATHERED}: lengths={tuple(lengths)} for {size} ranks, and rank {rank} has {own} "
            "keys; give the number of keys on each rank."
        )
    rules: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    if is_causal:  # keys up to the query's own, counted from the last key here
        rules["window"] = (-1, sum(lengths[rank + 1 :]))
    out, lse = _partial(query, key, value, rules)
    return merge_ranks(out, lse, what=_GATHERED, group=group).to(query.dtype)


def ring_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    group: Any = None,
    backend: str | None = None,
) -> Tensor:
    """Return attention of this rank's queries to the keys of all ranks, passed on in a ring.

    For prefill of a sequence that ranks hold one part each of, in order. The next keys are on
    their way while a rank attends to the present ones.

    Parameters
    ----------
    query : tensor of shape (batch, q_heads, own_len, head_dim)
        This rank's part of the sequence, as long as that of any other rank.
    key, value : tensor of shape (batch, kv_heads, own_len, head_dim)
    is_causal, scale, softcap, group, backend
        As for :func:`gathered_attention`.

    Returns
    -------
    tensor of shape (batch, q_heads, own_len, head_dim)
        For this rank's queries.

    Raises
    ------
    ShapeError
        If keys and values differ in shape, or queries are not as many.
    DistributedError
        If ranks hold parts of different shapes, or another rank fails.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    if key.shape != value.shape:
        raise ShapeError(
            f"{_RING}: key of shape {tuple(key.shape)} and value of shape {tuple(value.shape)} "
            "must be alike."
        )
    check_alike(_RING, (tuple(key.shape), str(key.dtype)), group)
    if query.shape[2] != key.shape[2]:
        raise ShapeError(
            f"{_RING}: {query.shape[2]} queries and {key.shape[2]} keys are not the same part of a "
            "sequence; use gathered_attention."
        )
    rules: dict[str, Any] = {"scale": scale, "softcap": softcap, "backend": backend}
    held = torch.stack([key, value])
    state: tuple[Tensor, Tensor] | None = None
    for step in range(size):
        source = (rank - step) % size
        coming, works, what = held, [], f"pass keys on, step {step + 1} of {size}"
        if step + 1 < size:
            coming = torch.empty_like(held)
            with Step(_RING, what, group):
                works = _exchange(held, coming, rank, size, group)
        if not is_causal or source <= rank:
            causal = is_causal and source == rank
            part = _partial(query, held[0], held[1], rules | {"is_causal": causal})
            state = part if state is None else merge(state, part)
        with Step(_RING, what, group):
            for work in works:
                work.wait()
        held = coming
    assert state is not None
    return state[0].to(query.dtype)


def merge_ranks(out: Tensor, lse: Tensor, *, what: str, group: Any = None) -> Tensor:
    """Return attention to the keys of all ranks, given that to the keys of each.

    Parameters
    ----------
    out : float32 tensor of shape (..., value_dim)
    lse : float32 tensor of shape (...)
        Logarithms of the denominators; ``-inf`` of no key.
    what : str
        Named in errors.
    group : ProcessGroup, optional

    Returns
    -------
    float32 tensor of shape (..., value_dim)
        The same bits on every rank: parts are merged in the order of ranks.

    Raises
    ------
    DistributedError
        If another rank fails.
    """
    state = torch.cat([out, lse[..., None]], dim=-1)
    states = [torch.empty_like(state) for _ in range(dist.get_world_size(group))]
    with Step(what, "gather outputs", group):
        dist.all_gather(states, state, group=group)
    merged = states[0][..., :-1], states[0][..., -1]
    for other in states[1:]:
        merged = merge(merged, (other[..., :-1], other[..., -1]))
    return merged[0]


def merge(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return output and logarithm of the denominator over the keys of both.

    Parameters
    ----------
    one, other : pair of tensors
        Outputs of shape (..., value_dim) and logarithms of shape (...); ``-inf`` of no key.
    """
    total = torch.logaddexp(one[1], other[1])
    unit = torch.where(total == -torch.inf, torch.zeros_like(total), total)
    first, second = ((state[1] - unit).exp()[..., None] * state[0] for state in (one, other))
    return first + second, total


def _partial(query: Tensor, key: Any, value: Any, rules: dict[str, Any]) -> tuple[Tensor, Tensor]:
    if key.shape[2] == 0:
        shape = (*query.shape[:3], value.shape[-1])
        nothing = query.new_zeros(shape, dtype=torch.float32)
        return nothing, torch.full_like(nothing[..., 0], -torch.inf)
    out, lse = attention(query, key, value, return_lse=True, **rules)
    return torch.as_tensor(out).float(), torch.as_tensor(lse).float()


def _exchange(held: Tensor, coming: Tensor, rank: int, size: int, group: Any) -> list[Any]:
    def peer(other: int) -> int:
        return other if group is None else dist.get_global_rank(group, other)

    after, before = peer((rank + 1) % size), peer((rank - 1) % size)
    moves = [
        dist.P2POp(dist.isend, held, after, group=group),
        dist.P2POp(dist.irecv, coming, before, group=group),
    ]
    works: list[Any] = dist.batch_isend_irecv(moves)
    return works


def _asked(own: int, size: int, group: Any) -> list[int]:
    lengths: list[Any] = [None] * size
    with Step(_GATHERED, "ask for lengths", group):
        dist.all_gather_object(lengths, own, group=group)
    return lengths
