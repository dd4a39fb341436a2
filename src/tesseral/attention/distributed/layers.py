"""The two sums of a decoder block over ranks: after attention, and after the MLP."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral._errors import ParameterError, ShapeError
from tesseral.attention.api import attention
from tesseral.attention.distributed.direct import sum_through_peers
from tesseral.attention.distributed.overlap import Reduce, spans, sum_by_tiles
from tesseral.attention.distributed.peers import Peers
from tesseral.attention.distributed.rows import Projected, Strips
from tesseral.attention.mask import Window
from tesseral.runtime.ranks import Step

_ATTENTION = "attention_all_reduce"
_LINEAR = "linear_all_reduce"


def attention_all_reduce(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    tiles: Sequence[int] | None = None,
    strips: Sequence[int] | None = None,
    group: Any = None,
    reduce: Reduce | None = None,
    peers: Peers | None = None,
    backend: str | None = None,
) -> Tensor:
    """Return attention of this rank's heads, projected, and summed over the ranks.

    Queries go tile by tile; the sum of one tile runs while the next is computed. Without
    ``tiles`` there is one, and nothing overlaps; :func:`choose_plan` says what pays.

    Parameters
    ----------
    query : tensor of shape (batch, q_heads, q_len, head_dim)
        The heads of this rank, as the following ones.
    key : tensor of shape (batch, kv_heads, kv_len, head_dim)
    value : tensor of shape (batch, kv_heads, kv_len, value_dim)
    weight : tensor of shape (hidden, q_heads * value_dim)
        The columns of the output projection that read these heads.
    is_causal, scale, softcap, sinks, backend
        As for :func:`tesseral.attention.attention`.
    window : (left, right), optional
        As there; only under ``is_causal``.
    tiles : sequence of int, optional
        Queries of each tile, the same on all ranks; they add up to ``q_len``.
    strips : sequence of int, optional
        Queries that attention takes at a time; as ``tiles`` by default. Few long strips keep a
        device full, and sums then hide behind the projection alone.
    group : ProcessGroup, optional
        The ranks; all by default.
    reduce : callable, optional
        Begins to sum a tensor over the ranks in another way than ``dist.all_reduce``.
    peers : Peers, optional
        Memory of the ranks, such as :class:`PeerMemory`: sums then go by copy engines.

    Returns
    -------
    tensor of shape (batch, q_len, hidden)
        The same on every rank. It is laid out with the queries first. With ``peers`` the
        call after the next one writes over it.

    Raises
    ------
    ShapeError, ParameterError
        If arguments do not fit together, before anything is sent.
    DistributedError
        If a sum fails.

    References
    ----------
    FastAttention, arXiv:2410.16663: tiling-AllReduce.
    """
    batch, heads, q_len, _ = query.shape
    _check_weight(_ATTENTION, weight, heads * value.shape[-1])
    _check_recorded(_ATTENTION, query, key, value, weight)
    if window is not None and not is_causal:
        raise ParameterError(
            f"{_ATTENTION}: window={window!r} needs is_causal=True; without it, keys behind a tile "
            "of queries would have to be counted from the last tile."
        )

    rules: dict[str, Any] = {
        "is_causal": is_causal,
        "scale": scale,
        "window": window,
        "softcap": softcap,
        "sinks": sinks,
        "backend": backend,
    }

    def attend(start: int, stop: int) -> Tensor:
        parts: tuple[Tensor, Tensor, Tensor] = query, key, value
        if (start, stop) != (0, q_len):
            # the last query of the strip stands beside the last key that it sees
            seen = max(0, key.shape[2] - (q_len - stop)) if is_causal else key.shape[2]
            parts = query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen]
        rows: Any = attention(*parts, **rules)
        flat: Tensor = rows.permute(2, 0, 1, 3).reshape((stop - start) * batch, -1)
        return flat

    tiles = tiles or (q_len,)
    if len(tiles) == 1 and peers is None and reduce is None and strips in (None, tiles):
        return _at_once(attend(0, q_len), weight, (q_len, batch), group, _ATTENTION, tiles)
    rows = Strips(attend, strips or tiles, q_len, batch, _ATTENTION)
    compute = Projected(rows, weight)
    return _summed(compute, query, (q_len, batch, len(weight)), tiles, group, reduce, peers)


def linear_all_reduce(
    x: Tensor,
    weight: Tensor,
    *,
    tiles: Sequence[int] | None = None,
    group: Any = None,
    reduce: Reduce | None = None,
    peers: Peers | None = None,
) -> Tensor:
    """Return ``x @ weight.T`` summed over the ranks, tile by tile, as after a sharded MLP.

    Parameters
    ----------
    x : tensor of shape (batch, length, features)
        The features of this rank.
    weight : tensor of shape (hidden, features)
        The columns that read them.
    tiles, group, reduce, peers
        As for :func:`attention_all_reduce`.

    Returns
    -------
    tensor of shape (batch, length, hidden)
        The same on every rank. It is laid out with the tokens first.
    """
    if x.ndim != 3:
        raise ShapeError(f"{_LINEAR}: x must be (batch, length, features), got {tuple(x.shape)}.")
    _check_weight(_LINEAR, weight, x.shape[-1])
    _check_recorded(_LINEAR, x, weight)

    def rows(start: int, stop: int) -> Tensor:
        return x[:, start:stop].transpose(0, 1).reshape(-1, x.shape[-1])

    batch, length, _ = x.shape
    if (tiles is None or len(tiles) == 1) and peers is None and reduce is None:
        return _at_once(
            rows(0, length), weight, (length, batch), group, _LINEAR, tiles or (length,)
        )
    shape, compute = (length, batch, len(weight)), Projected(rows, weight)
    return _summed(compute, x, shape, tiles or (length,), group, reduce, peers, what=_LINEAR)


def _at_once(
    rows: Tensor,
    weight: Tensor,
    leading: tuple[int, int],
    group: Any,
    what: str,
    tiles: Sequence[int],
) -> Tensor:
    """Return all rows' sum with the batch first, as one would write it without tiles."""
    spans(tiles, leading[0], what=what)
    out = torch.mm(rows, weight.mT)
    with Step(what, "sum tile 1 of 1", group):
        dist.all_reduce(out, group=group)
    return out.view(*leading, len(weight)).transpose(0, 1)


def _summed(
    compute: Projected,
    like: Tensor,
    shape: tuple[int, int, int],
    tiles: Sequence[int],
    group: Any,
    reduce: Reduce | None,
    peers: Peers | None,
    *,
    what: str = _ATTENTION,
) -> Tensor:
    """Return the sum with the batch first."""
    if peers is not None:
        return sum_through_peers(compute, shape, tiles, peers, what=what).transpose(0, 1)
    out = like.new_empty(shape)
    return sum_by_tiles(compute, out, tiles, group, what=what, reduce=reduce).transpose(0, 1)


def _check_weight(where: str, weight: Tensor, features: int) -> None:
    if weight.ndim != 2 or weight.shape[1] != features:
        raise ShapeError(
            f"{where}: weight must have shape (hidden, {features}), a column for every feature "
            f"of this rank, got {tuple(weight.shape)}."
        )


def _check_recorded(where: str, *tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ParameterError(f"{where}: gradients do not pass a sum by tiles; use torch.no_grad().")
