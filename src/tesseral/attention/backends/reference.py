"""Attention by its definition, in float64: the oracle of all other backends."""

from typing import Any

from array_api_compat import array_namespace

from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array, Namespace
from tesseral.runtime.registry import YES, Verdict


class ReferenceBackend:
    """Dense attention in float64, whose memory grows with q_len times kv_len."""

    name = "reference"

    def supports(self, problem: AttentionProblem) -> Verdict:
        """Accept every problem on a device that has float64."""
        if problem.device.startswith("mps"):
            return Verdict(False, f"needs float64, which {problem.device} has not")
        return YES

    def plan(self, problem: AttentionProblem) -> TilePlan:
        """Return the one tile that holds everything."""
        scores = problem.batch * problem.q_heads * problem.q_len * problem.kv_len
        return TilePlan(
            batch_tile=problem.batch,
            head_tile=problem.kv_heads,
            q_tile=problem.q_len,
            k_tile=problem.kv_len,
            workspace_bytes=8 * scores,
        )

    def forward(self, problem: AttentionProblem, arrays: AttentionArrays) -> tuple[Array, Array]:
        """Return output (batch, q_heads, q_len, value_dim) and lse (batch, q_heads, q_len)."""
        xp = array_namespace(arrays.query)
        query = xp.astype(arrays.query, xp.float64)
        key = xp.repeat(_float64(xp, arrays.key), problem.group, axis=1)
        value = xp.repeat(_float64(xp, arrays.value), problem.group, axis=1)
        scores = xp.matmul(query, key.mT) * problem.scale
        if problem.softcap is not None:
            scores = problem.softcap * xp.tanh(scores / problem.softcap)
        scores = _mask(xp, problem, arrays, _bias(xp, problem, arrays, scores))
        if arrays.sinks is not None:
            scores, value = _append_sinks(xp, arrays.sinks, scores, value)
        weights, lse = _softmax(xp, scores)
        output = xp.astype(xp.matmul(weights, value), arrays.query.dtype)
        return output, xp.astype(lse, xp.float64 if problem.dtype == "float64" else xp.float32)


def _bias(
    xp: Namespace, problem: AttentionProblem, arrays: AttentionArrays, scores: Array
) -> Array:
    if arrays.alibi_slopes is not None:
        slopes = xp.astype(arrays.alibi_slopes, xp.float64)[..., None, None]
        scores = scores - slopes * xp.astype(xp.abs(_ahead(xp, problem, scores)), xp.float64)
    if problem.mask == "additive":
        scores = scores + xp.astype(arrays.mask, xp.float64)
    return scores


def _mask(
    xp: Namespace, problem: AttentionProblem, arrays: AttentionArrays, scores: Array
) -> Array:
    ahead = _ahead(xp, problem, scores)
    hidden = xp.zeros(scores.shape, dtype=xp.bool, device=scores.device)
    if problem.causal:
        hidden = hidden | (ahead > 0)
    left, right = problem.window or (-1, -1)
    if left >= 0:
        hidden = hidden | (ahead < -left)
    if right >= 0:
        hidden = hidden | (ahead > right)
    if problem.mask == "boolean":
        hidden = hidden | xp.logical_not(arrays.mask)
    return xp.where(hidden, xp.full_like(scores, -float("inf")), scores)


def _ahead(xp: Namespace, problem: AttentionProblem, like: Array) -> Array:
    """Return how far each key lies after each query's place: (q_len, kv_len)."""
    queries = xp.arange(problem.q_len, device=like.device) + problem.kv_len - problem.q_len
    return xp.arange(problem.kv_len, device=like.device)[None, :] - queries[:, None]


def _append_sinks(xp: Namespace, sinks: Array, scores: Array, value: Array) -> tuple[Array, Array]:
    """Add one key to each head: its score is the sink, its value zero."""
    column = xp.astype(sinks, xp.float64)[None, :, None, None]
    column = xp.broadcast_to(column, (*scores.shape[:3], 1))
    zero = xp.zeros((*value.shape[:2], 1, value.shape[3]), dtype=value.dtype, device=value.device)
    return xp.concat([scores, column], axis=3), xp.concat([value, zero], axis=2)


def _softmax(xp: Namespace, scores: Array) -> tuple[Array, Array]:
    """Return weights and lse; a row of ``-inf``, or without keys, has weights of zero."""
    floor = xp.full((*scores.shape[:3], 1), -float("inf"), dtype=scores.dtype, device=scores.device)
    top = xp.max(xp.concat([scores, floor], axis=3), axis=3, keepdims=True)
    top = xp.where(top == -float("inf"), xp.zeros_like(top), top)
    weights = xp.exp(scores - top)
    total = xp.sum(weights, axis=3, keepdims=True)
    seen = total > 0
    safe = xp.where(seen, total, xp.ones_like(total))
    lse = xp.where(seen, top + xp.log(safe), -float("inf") * xp.ones_like(total))
    return weights / safe, lse[..., 0]


def _float64(xp: Namespace, array: Any) -> Array:
    if isinstance(array, PackedTensor):
        return array.dequantize(xp.float64)
    return xp.astype(array, xp.float64)
