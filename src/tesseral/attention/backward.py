"""Gradients of attention by tiles, in torch: scores are computed again from the lse.

README.md derives the formulas. Nothing here grows with the product of the lengths.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tesseral.attention.plan import spans
from tesseral.attention.problem import AttentionProblem
from tesseral.attention.tiling_mask import TilingMask

ROWS = 512
"""Query rows of a tile, query heads of a group counted as rows."""

KEYS = 512
"""Keys of a tile."""

LARGE = 1e4
"""An lse beyond this is too coarse in float32 to tell the weights: they are summed again."""

PAIRS_ACCELERATOR = 64
"""Pairs of batch and key head in a tile where a launch costs more than memory does."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forward:
    """What a dense call was given and gave: shapes of :func:`tesseral.attention.attention`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    sinks: torch.Tensor | None
    alibi_slopes: torch.Tensor | None
    output: torch.Tensor
    lse: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gradients:
    """Where gradients go; ``None`` where none is wanted.

    Those of query, key and value are written, whatever was there. Those of mask, sinks and
    slopes are added to what is there, and are of the type of the arithmetic.
    """

    query: torch.Tensor | None
    key: torch.Tensor | None
    value: torch.Tensor | None
    mask: torch.Tensor | None
    sinks: torch.Tensor | None
    alibi_slopes: torch.Tensor | None


def compute_dtype(problem: AttentionProblem) -> torch.dtype:
    """Return the type of the arithmetic: float32, or float64 for float64 inputs."""
    return torch.float64 if problem.dtype == "float64" else torch.float32


def backward(
    problem: AttentionProblem,
    forward: Forward,
    grad_output: torch.Tensor,
    grad_lse: torch.Tensor | None,
    into: Gradients,
) -> None:
    """Write the gradients of a dense call.

    Works in float32 (float64 for float64 inputs) and rounds each gradient once. Beside the
    gradients it needs two tiles and, for the key heads of a tile, the gradients of keys and
    values in the type of the arithmetic.

    Parameters
    ----------
    problem : AttentionProblem
        The call, without quantised keys or values.
    forward : Forward
        Its arrays and results.
    grad_output, grad_lse : tensor
        Gradients of the results, in their shapes.
    into : Gradients
        Where to write.

    References
    ----------
    Dao et al., arXiv 2205.14135, algorithm 4.
    """
    call = _open(problem, forward, grad_output, grad_lse, into)
    pairs = torch.get_num_threads() if problem.device == "cpu" else PAIRS_ACCELERATOR
    head_tile = min(problem.kv_heads, pairs)
    batch_tile = max(1, min(problem.batch, pairs // head_tile))
    for batch in spans(problem.batch, batch_tile):
        for head in spans(problem.kv_heads, head_tile):
            _heads(call, batch, head)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """A call with the query heads of a group on an axis of their own, next to their key head."""

    problem: AttentionProblem
    tiling: TilingMask
    dtype: torch.dtype  # of the arithmetic
    factor: float  # of the scores, or of the argument of tanh
    q_tile: int
    query: torch.Tensor  # (batch, kv_heads, group, q_len, head_dim)
    key: torch.Tensor  # (batch, kv_heads, kv_len, head_dim)
    value: torch.Tensor  # (batch, kv_heads, kv_len, value_dim)
    output: torch.Tensor  # (batch, kv_heads, group, q_len, value_dim)
    lse: torch.Tensor  # (batch, kv_heads, group, q_len)
    grad_output: torch.Tensor
    grad_lse: torch.Tensor | None
    mask: torch.Tensor | None  # (batch, kv_heads, group, q_len, kv_len), a view
    sinks: torch.Tensor | None  # (kv_heads, group, 1)
    slopes: torch.Tensor | None  # (batch, kv_heads, group, 1, 1)
    into: Gradients  # mask, sinks, slopes with as many axes as these, of size 1 where they spread
    memory: "_Memory"


class _Memory:
    """Memory that tiles take in turn: to write on fresh pages costs as much as a product does."""

    def __init__(self, like: torch.Tensor, dtype: torch.dtype) -> None:
        self._like, self._dtype = like, dtype
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """Return contiguous memory; what was taken by this name before is lost."""
        size = math.prod(shape)
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = self._like.new_empty(size, dtype=self._dtype)
        return kept[:size].view(shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """A tile of queries: pairs of batch and key head, by the rows of a group."""

    batch: slice
    head: slice
    queries: slice
    query: torch.Tensor  # (pairs, rows, head_dim), times the factor
    grad_output: torch.Tensor  # (pairs, rows, value_dim)
    lse: torch.Tensor  # (pairs, rows, 1), +inf in a row that saw nothing
    delta: torch.Tensor  # (pairs, rows, 1)
    total: torch.Tensor | None  # (pairs, rows, 1), what exp(score - lse) sums to, if not to 1
    grad_query: torch.Tensor  # (pairs, rows, head_dim)
    grid: torch.Size  # the rows and pairs unfolded: batch, kv_heads, group, q_len


def _open(
    problem: AttentionProblem,
    forward: Forward,
    grad_output: torch.Tensor,
    grad_lse: torch.Tensor | None,
    into: Gradients,
) -> _Call:
    heads = (problem.kv_heads, problem.group)
    dtype = compute_dtype(problem)

    def spread(array: torch.Tensor | None, *tail: int) -> Any:
        if array is None:
            return None
        return array.expand(problem.batch, problem.q_heads, *tail).unflatten(1, heads)

    def aligned(array: torch.Tensor | None, axes: int) -> Any:
        """Return a gradient with ``axes`` axes, that of the heads cut in two."""
        if array is None:
            return None
        array = array[(None,) * (axes - array.ndim)]
        return array.unflatten(1, heads if array.shape[1] == problem.q_heads else (1, 1))

    slopes, sinks = spread(forward.alibi_slopes), forward.sinks
    return _Call(
        problem=problem,
        tiling=TilingMask(
            problem.q_len, problem.kv_len, is_causal=problem.causal, window=problem.window
        ),
        dtype=dtype,
        factor=problem.scale / (problem.softcap or 1.0),
        q_tile=max(1, min(problem.q_len, ROWS // problem.group)),
        query=forward.query.unflatten(1, heads),
        key=forward.key,
        value=forward.value,
        output=forward.output.unflatten(1, heads),
        lse=forward.lse.unflatten(1, heads),
        grad_output=grad_output.unflatten(1, heads),
        grad_lse=None if grad_lse is None else grad_lse.unflatten(1, heads),
        mask=spread(forward.mask, problem.q_len, problem.kv_len),
        sinks=None if sinks is None else sinks.to(dtype).view(*heads, 1),
        slopes=None if slopes is None else slopes.to(dtype)[..., None, None],
        into=Gradients(
            query=None if into.query is None else into.query.unflatten(1, heads),
            key=into.key,
            value=into.value,
            mask=aligned(into.mask, 4),
            sinks=None if into.sinks is None else into.sinks.view(*heads),
            alibi_slopes=aligned(into.alibi_slopes, 2),
        ),
        memory=_Memory(forward.query, dtype),
    )


def _heads(call: _Call, batch: slice, head: slice) -> None:
    """Write the gradients of some key heads and of the query heads that read them."""
    pairs = (batch.stop - batch.start) * (head.stop - head.start)
    tiles = spans(call.problem.kv_len, KEYS) if call.problem.kv_len else []
    # one block of memory for each tile of keys: products add to whole blocks faster
    grad_keys, grad_values = (
        [
            call.memory.take(f"{name}{i}", pairs, keys.stop - keys.start, whole.shape[3]).zero_()
            for i, keys in enumerate(tiles)
            if whole is not None
        ]
        for name, whole in (("grad_key", call.into.key), ("grad_value", call.into.value))
    )
    for queries in spans(call.problem.q_len, call.q_tile):
        rows = _open_rows(call, batch, head, queries)
        if ((rows.lse.abs() > LARGE) & rows.lse.isfinite()).any():
            rows = dataclasses.replace(rows, total=_total(call, rows))
        for index, keys, masked in _visits(call, queries):
            inside = slice(keys.start - index * KEYS, keys.stop - index * KEYS)
            key = _dense(call, "key", call.key, rows, keys)
            weights = _weights(call, rows, keys, key, masked=masked)
            if grad_values:
                grad_values[index][:, inside].baddbmm_(weights.mT, rows.grad_output)
            grad_scores = _grad_scores(call, rows, keys, weights)
            if grad_keys:
                grad_keys[index][:, inside].baddbmm_(grad_scores.mT, rows.query)
            if call.into.query is not None:
                rows.grad_query.baddbmm_(grad_scores, key)
        _close_rows(call, rows)
    for whole, parts in ((call.into.key, grad_keys), (call.into.value, grad_values)):
        if whole is not None:
            for keys, part in zip(tiles, parts, strict=True):
                target = whole[batch, head, keys]
                target.copy_(part.view(target.shape))


def _open_rows(call: _Call, batch: slice, head: slice, queries: slice) -> _Rows:
    at = (batch, head, slice(None), queries)
    n_batch, n_heads, group, n_queries = grid = call.lse[at].shape

    def fold(name: str, array: torch.Tensor) -> torch.Tensor:
        """Return a copy of (batch, kv_heads, group, q_len, width) as (pairs, rows, width)."""
        part = array[at]
        memory = call.memory.take(name, n_batch * n_heads, group * n_queries, part.shape[4])
        memory.view(part.shape).copy_(part)
        return memory

    grad_output, lse = fold("grad_output", call.grad_output), fold("lse", call.lse[..., None])
    delta = fold("output", call.output).mul_(grad_output).sum(-1, keepdim=True)
    if call.grad_lse is not None:
        delta -= fold("grad_lse", call.grad_lse[..., None])
    query = fold("query", call.query).mul_(call.factor)
    return _Rows(
        batch=batch,
        head=head,
        queries=queries,
        query=query,
        grad_output=grad_output,
        lse=lse.masked_fill_(lse == -math.inf, math.inf),  # so that its weights are zero
        delta=delta,
        total=None,
        grad_query=call.memory.take("grad_query", *query.shape).zero_(),
        grid=grid,
    )


def _close_rows(call: _Call, rows: _Rows) -> None:
    """Write what is complete once all keys were visited."""
    if call.into.query is not None:
        grad = rows.grad_query.mul_(call.factor).view(*rows.grid, rows.query.shape[2])
        call.into.query[rows.batch, rows.head, :, rows.queries] = grad
    if call.into.sinks is not None and call.sinks is not None:
        grad = _sink_weights(rows, call.sinks) * rows.delta
        if rows.total is not None:
            grad /= rows.total
        call.into.sinks[rows.head] -= grad.view(rows.grid).sum((0, 3))


def _visits(call: _Call, queries: slice) -> Iterator[tuple[int, slice, bool]]:
    """Yield the tiles of keys that a tile of queries sees some of.

    Yields
    ------
    index : int
        Which tile.
    keys : slice
        The part of it that is seen.
    masked : bool
        Whether some query does not see all of the part.
    """
    seen = call.tiling.key_range(queries.start, queries.stop)
    for index in range(seen.start // KEYS, -(-seen.stop // KEYS)):
        keys = slice(max(seen.start, index * KEYS), min(seen.stop, (index + 1) * KEYS))
        yield index, keys, not seen.full_start <= keys.start <= keys.stop <= seen.full_stop


def _total(call: _Call, rows: _Rows) -> torch.Tensor:
    """Return what the weights of a row sum to, its sink included; 1 where it saw nothing."""
    total = torch.zeros_like(rows.lse)
    if call.sinks is not None:
        total += _sink_weights(rows, call.sinks)
    for _, keys, masked in _visits(call, rows.queries):
        key = _dense(call, "key", call.key, rows, keys)
        weights = _weights(call, rows, keys, key, masked=masked)
        total += weights.sum(-1, keepdim=True)
    return total.masked_fill_(total == 0, 1.0)


def _sink_weights(rows: _Rows, sinks: torch.Tensor) -> torch.Tensor:
    """Return the weight of its head's sink in each row: (pairs, rows, 1)."""
    weights = torch.exp(sinks[rows.head] - rows.lse.view(rows.grid))
    return weights.reshape(rows.lse.shape)


def _weights(
    call: _Call, rows: _Rows, keys: slice, key: torch.Tensor, *, masked: bool
) -> torch.Tensor:
    """Return the softmax weights of a tile, (pairs, rows, keys)."""
    weights = call.memory.take("weights", *rows.query.shape[:2], key.shape[1])
    torch.bmm(rows.query, key.mT, out=weights)
    if call.problem.softcap:
        call.memory.take("capped", *weights.shape).copy_(weights.tanh_())
        weights *= call.problem.softcap
    _add_bias(call, rows, keys, weights)
    weights.sub_(rows.lse).exp_()
    _hide(call, rows, keys, weights, masked=masked)
    return weights if rows.total is None else weights.div_(rows.total)


def _grad_scores(call: _Call, rows: _Rows, keys: slice, weights: torch.Tensor) -> torch.Tensor:
    """Return gradients of the products of query and key, (pairs, rows, keys)."""
    grad = call.memory.take("grad_scores", *weights.shape)
    torch.bmm(rows.grad_output, _dense(call, "value", call.value, rows, keys).mT, out=grad)
    grad.sub_(rows.delta).mul_(weights)
    _reduce_bias(call, rows, keys, grad)
    if call.problem.softcap:
        # the factor of the query is divided by softcap: multiply where the derivative does
        slope = call.memory.take("capped", *weights.shape).square_().neg_().add_(1)
        grad.mul_(slope.mul_(call.problem.softcap))
    return grad


def _add_bias(call: _Call, rows: _Rows, keys: slice, scores: torch.Tensor) -> None:
    if call.slopes is not None:
        distance = _distance(call, rows, keys)
        _unfold(scores, rows).sub_(call.slopes[rows.batch, rows.head] * distance)
    if call.mask is not None and call.problem.mask == "additive":
        part = call.mask[rows.batch, rows.head, :, rows.queries, keys]
        _unfold(scores, rows).add_(part)


def _hide(call: _Call, rows: _Rows, keys: slice, weights: torch.Tensor, *, masked: bool) -> None:
    """Set weights to zero where a rule or a boolean mask hides the key."""
    if masked:
        band, shift = call.tiling.band, rows.queries.start - keys.start
        if band.upper is not None:
            _unfold(weights, rows).tril_(shift + band.upper)
        if band.lower is not None:
            _unfold(weights, rows).triu_(shift + band.lower)
    if call.mask is not None and call.problem.mask == "boolean":
        visible = call.mask[rows.batch, rows.head, :, rows.queries, keys]
        _unfold(weights, rows).masked_fill_(visible.logical_not(), 0.0)


def _unfold(scores: torch.Tensor, rows: _Rows) -> torch.Tensor:
    """Return (pairs, rows, keys) as (batch, kv_heads, group, q_len, keys), a view."""
    return scores.view(*rows.grid, scores.shape[2])


def _reduce_bias(call: _Call, rows: _Rows, keys: slice, grad: torch.Tensor) -> None:
    """Add the gradients of biased scores to those of the mask and the slopes."""
    if call.into.mask is not None:
        whole = (rows.batch, rows.head, slice(None), rows.queries, keys)
        _add_summed(call.into.mask, whole, _unfold(grad, rows))
    if call.into.alibi_slopes is not None:
        summed = (_unfold(grad, rows) * _distance(call, rows, keys)).sum((3, 4))
        _add_summed(call.into.alibi_slopes, (rows.batch, rows.head, slice(None)), -summed)


def _add_summed(target: torch.Tensor, index: tuple[slice, ...], part: torch.Tensor) -> None:
    """Add a part to its place in ``target``, summed along the axes of size 1 there."""
    sides = zip(target.shape, index, strict=True)
    place = target[tuple(slice(None) if size == 1 else where for size, where in sides)]
    place += part.sum_to_size(place.shape)


def _distance(call: _Call, rows: _Rows, keys: slice) -> torch.Tensor:
    """Return the distance of each key from each query's place among the keys."""
    offset, place = call.problem.kv_len - call.problem.q_len, call.query.device
    places = torch.arange(rows.queries.start + offset, rows.queries.stop + offset, device=place)
    columns = torch.arange(keys.start, keys.stop, device=place)
    return (places[:, None] - columns).abs().to(call.dtype)


def _dense(call: _Call, name: str, source: torch.Tensor, rows: _Rows, keys: slice) -> torch.Tensor:
    """Return some keys or values as (pairs, keys, width) in the type of the arithmetic."""
    part = source[rows.batch, rows.head, keys]
    if part.dtype != call.dtype:
        memory = call.memory.take(name, *part.shape)
        part = memory.copy_(part)
    return part.flatten(0, 1)
