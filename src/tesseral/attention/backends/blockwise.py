"""Attention by tiles, in any framework of the array API; never holds all the scores."""

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from tesseral.attention.plan import TilePlan, key_tiles, plan_tiles, spans
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.softmax import SoftmaxState
from tesseral.attention.tiling_mask import TilingMask
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array, Namespace
from tesseral.runtime.registry import YES, Verdict


class BlockwiseBackend:
    """Portable attention with memory that grows with the lengths, not with their product.

    Works in float32 (float64 for float64 inputs) and rounds the output once.
    Deterministic as far as the framework's matrix product is.
    """

    name = "blockwise"

    def supports(self, problem: AttentionProblem) -> Verdict:  # noqa: ARG002
        """Accept every problem."""
        return YES

    def plan(self, problem: AttentionProblem) -> TilePlan:
        """Return the tiles that :meth:`forward` takes by default."""
        return plan_tiles(problem)

    def forward(
        self, problem: AttentionProblem, arrays: AttentionArrays, plan: TilePlan | None = None
    ) -> tuple[Array, Array]:
        """Return output (batch, q_heads, q_len, value_dim) and lse (batch, q_heads, q_len)."""
        call = _open(problem, arrays, plan or self.plan(problem))
        batches = []
        for batch in spans(problem.batch, call.plan.batch_tile):
            heads = []
            for head in spans(problem.kv_heads, call.plan.head_tile):
                tiles = [
                    _query_tile(call, batch, head, queries)
                    for queries in spans(problem.q_len, call.plan.q_tile)
                ]
                heads.append(_join(call.xp, tiles, axis=2))
            batches.append(_join(call.xp, heads, axis=1))
        return _join(call.xp, batches, axis=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """A call with the query heads of a group on an axis of their own, next to their key head."""

    problem: AttentionProblem
    plan: TilePlan
    tiling: TilingMask
    xp: Namespace
    dtype: Any  # of the arithmetic
    query: Array  # (batch, kv_heads, group, q_len, head_dim)
    key: Array | PackedTensor
    value: Array | PackedTensor
    mask: Array | None  # (batch, kv_heads, group, q_len, kv_len), a view
    sinks: Array | None  # (kv_heads, group, 1)
    slopes: Array | None  # (batch, kv_heads, group, 1, 1)


def _open(problem: AttentionProblem, arrays: AttentionArrays, plan: TilePlan) -> _Call:
    xp = array_namespace(arrays.query)
    dtype = xp.float64 if problem.dtype == "float64" else xp.float32
    grid = (problem.batch, problem.kv_heads, problem.group)

    def grouped(array: Array | None, *tail: int) -> Array | None:
        if array is None:
            return None
        spread = xp.broadcast_to(array, (problem.batch, problem.q_heads, *tail))
        return xp.reshape(spread, (*grid, *tail))

    sinks, slopes = arrays.sinks, grouped(arrays.alibi_slopes)
    return _Call(
        problem=problem,
        plan=plan,
        tiling=TilingMask(
            problem.q_len,
            problem.kv_len,
            is_causal=problem.causal,
            window=problem.window,
            block=max(plan.q_tile, plan.k_tile),
        ),
        xp=xp,
        dtype=dtype,
        query=xp.reshape(arrays.query, (*grid, problem.q_len, problem.head_dim)),
        key=arrays.key,
        value=arrays.value,
        mask=grouped(arrays.mask, problem.q_len, problem.kv_len),
        sinks=None if sinks is None else xp.reshape(xp.astype(sinks, dtype), (*grid[1:], 1)),
        slopes=None if slopes is None else xp.astype(slopes, dtype)[..., None, None],
    )


def _query_tile(call: _Call, batch: slice, head: slice, queries: slice) -> tuple[Array, Array]:
    """Return output and lse of one tile of queries, over all the keys it sees."""
    xp, problem = call.xp, call.problem
    factor = problem.scale / (problem.softcap or 1.0)
    query = xp.astype(call.query[batch, head, :, queries], call.dtype, copy=False) * factor
    *grid, rows, _ = query.shape
    # the heads of a group become rows of one matrix, so that their keys are read once
    folded = xp.reshape(query, (*grid[:2], grid[2] * rows, problem.head_dim))
    state = None
    for keys, masked in key_tiles(call.tiling.key_range(queries.start, queries.stop), call.plan):
        scores = xp.matmul(folded, _dense(call, call.key, batch, head, keys).mT)
        scores = _adjust(call, scores, batch, head, queries, keys, masked=masked)
        tile = SoftmaxState.from_scores(scores, _dense(call, call.value, batch, head, keys))
        state = tile if state is None else state.merge(tile)
    if state is None:
        state = SoftmaxState.empty(folded, tuple(folded.shape[:-1]), problem.value_dim)
    if call.sinks is not None:
        state = state.merge(_sink_state(call, call.sinks[head], rows))
    output, lse = state.finish()
    output = xp.astype(output, call.query.dtype, copy=False)
    shape = (grid[0], grid[1] * grid[2], rows)
    return xp.reshape(output, (*shape, problem.value_dim)), xp.reshape(lse, shape)


def _adjust(
    call: _Call,
    scores: Array,
    batch: slice,
    head: slice,
    queries: slice,
    keys: slice,
    *,
    masked: bool,
) -> Array:
    """Apply softcap, biases and masks to the scores of one tile, in this order."""
    xp, problem = call.xp, call.problem
    if not (masked or problem.softcap or problem.alibi or call.mask is not None):
        return scores
    folded = scores.shape
    rows, columns = queries.stop - queries.start, keys.stop - keys.start
    scores = xp.reshape(scores, (*folded[:2], problem.group, rows, columns))
    if problem.softcap:
        scores = xp.tanh(scores) * problem.softcap
    if call.slopes is not None:
        scores = scores - call.slopes[batch, head] * _distance(call, queries, keys)
    if call.mask is not None:
        part = call.mask[batch, head, :, queries, keys]
        if problem.mask == "additive":
            scores = scores + xp.astype(part, call.dtype, copy=False)
        else:
            scores = _hide(xp, part, scores)
    if masked:
        part = call.tiling.block_mask(queries.start, queries.stop, keys.start, keys.stop)
        # a copy, since the window is read-only, which torch does not know of
        scores = _hide(xp, xp.asarray(part.copy(), device=scores.device), scores)
    return xp.reshape(scores, folded)


def _hide(xp: Namespace, visible: Array, scores: Array) -> Array:
    hidden = xp.asarray(-float("inf"), dtype=scores.dtype, device=scores.device)
    return xp.where(visible, scores, hidden)


def _distance(call: _Call, queries: slice, keys: slice) -> Array:
    """Return the distance of each key of a tile from each query's place among the keys."""
    xp, problem = call.xp, call.problem
    place = call.query.device
    offset = problem.kv_len - problem.q_len
    rows = xp.arange(queries.start + offset, queries.stop + offset, device=place)
    columns = xp.arange(keys.start, keys.stop, device=place)
    return xp.astype(xp.abs(rows[:, None] - columns[None, :]), call.dtype)


def _sink_state(call: _Call, sinks: Array, rows: int) -> SoftmaxState:
    """Return the state after a sink: a key of given score whose value is zero."""
    xp, problem = call.xp, call.problem
    heads, group, _ = sinks.shape
    scores = xp.reshape(xp.broadcast_to(sinks, (heads, group, rows)), (1, heads, group * rows, 1))
    values = xp.zeros((1, problem.value_dim), dtype=call.dtype, device=sinks.device)
    return SoftmaxState.from_scores(scores, values)


def _dense(
    call: _Call, source: Array | PackedTensor, batch: slice, head: slice, keys: slice
) -> Array:
    """Return some keys or values in the type of the arithmetic."""
    part = source[batch, head, keys]
    if isinstance(part, PackedTensor):
        return part.dequantize(call.dtype)
    return call.xp.astype(part, call.dtype, copy=False)


def _join(xp: Namespace, parts: list[tuple[Array, Array]], axis: int) -> tuple[Array, Array]:
    if len(parts) == 1:
        return parts[0]
    outputs, lses = zip(*parts, strict=True)
    return xp.concat(outputs, axis=axis), xp.concat(lses, axis=axis)
