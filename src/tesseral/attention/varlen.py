"""The public entries for sequences of several lengths: packed one after another, or paged."""

from dataclasses import dataclass, replace

import numpy as np

from tesseral._errors import ParameterError, ShapeError
from tesseral.attention.call import run
from tesseral.attention.explanation import Explanation, explain_problem
from tesseral.attention.mask import Window
from tesseral.attention.problem import (
    AttentionArrays,
    AttentionProblem,
    Rules,
    check_heads,
    check_kinds,
    make_problem,
    remembered,
    rule_key,
    signature,
)
from tesseral.attention.registry import BACKENDS
from tesseral.attention.sequences import (
    Integers,
    Sequences,
    check_block_tables,
    check_lengths,
    spans_from_cumulative,
)
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array, Namespace

PACKED_QUERY = "total_q, q_heads, head_dim"
PADDED_QUERY = "batch, q_len, q_heads, head_dim"


def attention_varlen(
    query: Array,
    key: Array | PackedTensor,
    value: Array | PackedTensor,
    *,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    block_tables: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Return exact attention of several sequences that are packed one after another.

    Each sequence sees its own keys only, as if :func:`tesseral.attention.attention` were
    called for it alone: the rules count from its own last query and key. The layout is that
    of flash_attn, with heads after tokens. Gradients flow, but not to pools or through them.

    Parameters
    ----------
    query : array of shape (total_q, q_heads, head_dim)
        NumPy array or torch tensor; float16, bfloat16, float32 or float64. Any strides.
    key : array or PackedTensor of shape (total_k, kv_heads, head_dim)
        ``kv_heads`` divides ``q_heads``. With ``block_tables``, a pool of shape (n_blocks,
        block_size, kv_heads, head_dim).
    value : array or PackedTensor of shape (total_k, kv_heads, value_dim)
        Or a pool. Dense keys and values are of the type of ``query``.
    cu_seqlens_q, cu_seqlens_k : int32 or int64 array of shape (n_sequences + 1,)
        Where each sequence starts and, last, where the last one ends: 0 first, ``total_q`` or
        ``total_k`` last, never decreasing. Of any framework, on any device. With
        ``block_tables``, the differences of the second are the numbers of keys.
    block_tables : int32 or int64 array of shape (n_sequences, max_blocks), optional
        Keys and values are in pools: token ``t`` of sequence ``s`` is row ``t % block_size``
        of block ``block_tables[s, t // block_size]``. Entries past the blocks that a sequence
        needs are not read.
    is_causal, scale, window, softcap, sinks
        As of :func:`tesseral.attention.attention`, for each sequence.
    alibi_slopes : array of shape (q_heads,) or (n_sequences, q_heads), optional
        As of :func:`tesseral.attention.attention`.
    return_lse : bool
        Also return the logarithms of the softmax denominators.
    backend : str, optional
        Backend to use or fail; as of :func:`tesseral.attention.attention`.

    Returns
    -------
    output : array of shape (total_q, q_heads, value_dim)
        Of the framework, device and type of ``query``.
    lse : array of shape (total_q, q_heads)
        Only with ``return_lse``; rows in the order of ``output``, in float32 (float64 for
        float64 inputs).

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If the arguments do not fit together; the message says which and how.
    BackendError
        If the backend asked for is unknown or cannot run the call.

    Examples
    --------
    >>> import numpy as np
    >>> zeros, value = np.zeros((3, 1, 4)), np.array([1.0, 3.0, 5.0]).reshape(3, 1, 1)
    >>> edges = np.array([0, 2, 3])  # two tokens, then one
    >>> attention_varlen(zeros, zeros, value, cu_seqlens_q=edges, cu_seqlens_k=edges)[:, 0, 0]
    array([2., 2., 5.])
    """
    rules = Rules(is_causal=is_causal, scale=scale, window=window, softcap=softcap)
    call = _packed_call(
        AttentionArrays(query=query, key=key, value=value, sinks=sinks, alibi_slopes=alibi_slopes),
        (cu_seqlens_q, cu_seqlens_k, block_tables),
        rules,
    )
    output, lse = call.run(backend)
    return (output, lse) if return_lse else output


def attention_decode(
    query: Array,
    key_pool: Array | PackedTensor,
    value_pool: Array | PackedTensor,
    *,
    block_tables: Array,
    seq_lens: Array,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Array | tuple[Array, Array]:
    """Return exact attention of the last tokens of sequences whose keys lie in blocks of a pool.

    The queries are the last ``q_len`` positions of their sequence, whose keys are in the pool
    already, and causal among themselves: query ``i`` of sequence ``s`` sees keys up to
    ``seq_lens[s] - q_len + i``. A query before the first key, as all are in an empty
    sequence, gets zeros.

    Parameters
    ----------
    query : array of shape (batch, q_len, q_heads, head_dim)
        NumPy array or torch tensor; float16, bfloat16, float32 or float64. Any strides.
    key_pool : array or PackedTensor of shape (n_blocks, block_size, kv_heads, head_dim)
        ``kv_heads`` divides ``q_heads``. Rows that no sequence reaches are not read.
    value_pool : array or PackedTensor of shape (n_blocks, block_size, kv_heads, value_dim)
        A dense pool is of the type of ``query``.
    block_tables : int32 or int64 array of shape (batch, max_blocks)
        Token ``t`` of sequence ``s`` is row ``t % block_size`` of block
        ``block_tables[s, t // block_size]``. Entries past the blocks that a sequence needs are
        not read. Of any framework, on any device.
    seq_lens : int32 or int64 array of shape (batch,)
        Number of keys of each sequence, those of the queries included.
    scale, window, softcap, sinks
        As of :func:`tesseral.attention.attention`, for each sequence.
    alibi_slopes : array of shape (q_heads,) or (batch, q_heads), optional
        As of :func:`tesseral.attention.attention`.
    return_lse : bool
        Also return the logarithms of the softmax denominators.
    backend : str, optional
        Backend to use or fail; as of :func:`tesseral.attention.attention`.

    Returns
    -------
    output : array of shape (batch, q_len, q_heads, value_dim)
        Of the framework, device and type of ``query``.
    lse : array of shape (batch, q_len, q_heads)
        Only with ``return_lse``; in float32 (float64 for float64 inputs).

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If the arguments do not fit together; the message says which and how.
    BackendError
        If the backend asked for is unknown or cannot run the call.

    References
    ----------
    Kwon et al., arXiv 2309.06180 (paged keys and values).

    Examples
    --------
    >>> import numpy as np
    >>> pool = np.arange(8.0).reshape(4, 2, 1, 1)  # four blocks of two tokens
    >>> tables = np.array([[3, 0]])  # tokens 6, 7, 0, 1
    >>> query = np.zeros((1, 1, 1, 1))
    >>> attention_decode(query, pool, pool, block_tables=tables, seq_lens=np.array([3]))
    array([[[[4.33333333]]]])
    """
    rules = Rules(is_causal=True, scale=scale, window=window, softcap=softcap)
    call = _paged_call(
        AttentionArrays(
            query=query, key=key_pool, value=value_pool, sinks=sinks, alibi_slopes=alibi_slopes
        ),
        block_tables,
        seq_lens,
        rules,
    )
    output, lse = call.run(backend)
    output = call.xp.reshape(output, (*query.shape[:2], *output.shape[1:]))
    return (output, call.xp.reshape(lse, query.shape[:3])) if return_lse else output


def explain_varlen(
    query: Array,
    key: Array | PackedTensor,
    value: Array | PackedTensor,
    *,
    cu_seqlens_q: Array,
    cu_seqlens_k: Array,
    block_tables: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    return_lse: bool = False,  # noqa: ARG001
    backend: str | None = None,
) -> Explanation:
    """Return how :func:`attention_varlen` would run the same call, without running it.

    Takes its arguments and raises what it would raise. Lengths and tiles are those of the
    longest sequence, blocks those of all sequences together.

    Examples
    --------
    >>> import numpy as np
    >>> x, edges = np.zeros((3072, 8, 64), dtype=np.float32), np.array([0, 1024, 3072])
    >>> found = explain_varlen(x, x, x, cu_seqlens_q=edges, cu_seqlens_k=edges)
    >>> found.problem.batch, found.problem.q_len
    (2, 2048)
    """
    rules = Rules(is_causal=is_causal, scale=scale, window=window, softcap=softcap)
    arrays = AttentionArrays(
        query=query, key=key, value=value, sinks=sinks, alibi_slopes=alibi_slopes
    )
    return _packed_call(arrays, (cu_seqlens_q, cu_seqlens_k, block_tables), rules).explain(backend)


def explain_decode(
    query: Array,
    key_pool: Array | PackedTensor,
    value_pool: Array | PackedTensor,
    *,
    block_tables: Array,
    seq_lens: Array,
    scale: float | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    return_lse: bool = False,  # noqa: ARG001
    backend: str | None = None,
) -> Explanation:
    """Return how :func:`attention_decode` would run the same call, without running it.

    Takes its arguments and raises what it would raise; as :func:`explain_varlen` else.
    """
    rules = Rules(is_causal=True, scale=scale, window=window, softcap=softcap)
    arrays = AttentionArrays(
        query=query, key=key_pool, value=value_pool, sinks=sinks, alibi_slopes=alibi_slopes
    )
    return _paged_call(arrays, block_tables, seq_lens, rules).explain(backend)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Call:
    """A checked call over several sequences."""

    problem: AttentionProblem
    arrays: AttentionArrays
    sequences: Sequences
    xp: Namespace

    def run(self, backend: str | None) -> tuple[Array, Array]:
        chosen = BACKENDS.choose(self.problem, backend)
        return run(chosen, self.problem, self.arrays, self.sequences)

    def explain(self, backend: str | None) -> Explanation:
        lengths = zip(self.sequences.q_lens.tolist(), self.sequences.kv_lens.tolist(), strict=True)
        return explain_problem(self.problem, backend, list(lengths))


def _packed_call(
    arrays: AttentionArrays, places: tuple[Array, Array, Array | None], rules: Rules
) -> _Call:
    """Check a call of sequences that follow one another; ``places`` are edges and tables."""
    where, paged = "attention_varlen", places[2] is not None
    xp, sizes = _open(where, arrays, PACKED_QUERY, paged=paged)
    sequences = _packed(where, arrays, *places)
    problem = _state(where, arrays, sizes, sequences, rules)
    return _Call(problem=problem, arrays=arrays, sequences=sequences, xp=xp)


def _paged_call(
    arrays: AttentionArrays, block_tables: Array, seq_lens: Array, rules: Rules
) -> _Call:
    """Check a call of the last tokens of sequences, and lay its queries one after another."""
    where, query = "attention_decode", arrays.query
    xp, sizes = _open(where, arrays, PADDED_QUERY, paged=True)
    batch, q_len = query.shape[:2]
    sequences = _last_tokens(where, batch, q_len, seq_lens, block_tables, arrays.key.shape)
    problem = _state(where, arrays, sizes, sequences, rules)
    flat = replace(arrays, query=xp.reshape(query, (batch * q_len, *query.shape[2:])))
    return _Call(problem=problem, arrays=flat, sequences=sequences, xp=xp)


def _open(
    where: str, arrays: AttentionArrays, query_axes: str, *, paged: bool
) -> tuple[Namespace, dict[str, int]]:
    """Return the namespace of the arrays and their sizes, checked or known to be right."""

    def check() -> tuple[Namespace, dict[str, int]]:
        return check_kinds(where, arrays), _check_shapes(where, arrays, query_axes, paged=paged)

    return remembered(signature(arrays, where, paged), check)


def _state(
    where: str,
    arrays: AttentionArrays,
    sizes: dict[str, int],
    sequences: Sequences,
    rules: Rules,
) -> AttentionProblem:
    """Return the call as a problem: as many in the batch as sequences, as long as the longest."""
    batch, (q_len, kv_len) = len(sequences), sequences.longest

    def state() -> AttentionProblem:
        whole = {"batch": batch, "q_len": q_len, "kv_len": kv_len, **sizes}
        return make_problem(where, arrays, whole, rules)

    return remembered(signature(arrays, where, batch, q_len, kv_len, *rule_key(rules)), state)


def _check_shapes(
    where: str, arrays: AttentionArrays, query_axes: str, *, paged: bool
) -> dict[str, int]:
    """Return heads and dimensions, by the names that AttentionProblem gives them."""
    tokens = "n_blocks, block_size" if paged else "total_k"
    axes = {
        "query": query_axes,
        "key": f"{tokens}, kv_heads, head_dim",
        "value": f"{tokens}, kv_heads, value_dim",
    }
    shapes = {name: tuple(getattr(arrays, name).shape) for name in axes}
    for name, shape in shapes.items():
        if len(shape) != axes[name].count(",") + 1:
            raise ShapeError(f"{where}: {name} must have shape ({axes[name]}), got {shape}.")
    query, key, value = shapes.values()
    given = f"query {query}, key {key}, value {value}"
    if key[:-1] != value[:-1]:
        raise ShapeError(f"{where}: key and value differ in {tokens} or kv_heads: {given}.")
    if paged and key[1] == 0:
        raise ShapeError(f"{where}: block_size must be at least 1: {given}.")
    dims = (query[-1], key[-1], value[-1])
    check_heads(where, given, q_heads=query[-2], kv_heads=key[-2], dims=dims)
    return {
        "q_heads": query[-2],
        "kv_heads": key[-2],
        "head_dim": query[-1],
        "value_dim": value[-1],
    }


def _packed(
    where: str, arrays: AttentionArrays, edges_q: Array, edges_k: Array, tables: Array | None
) -> Sequences:
    """Return where the sequences of a packed call lie, checked."""
    q_starts, q_lens = spans_from_cumulative(where, "cu_seqlens_q", edges_q)
    kv_starts, kv_lens = spans_from_cumulative(where, "cu_seqlens_k", edges_k)
    if len(q_lens) != len(kv_lens):
        raise ShapeError(
            f"{where}: cu_seqlens_q is for {len(q_lens)} sequences, cu_seqlens_k for "
            f"{len(kv_lens)}."
        )
    _check_end(where, "cu_seqlens_q", q_lens, "query", arrays.query.shape[0])
    if tables is None:
        _check_end(where, "cu_seqlens_k", kv_lens, "key", arrays.key.shape[0])
        return Sequences(q_starts=q_starts, q_lens=q_lens, kv_starts=kv_starts, kv_lens=kv_lens)
    return Sequences(
        q_starts=q_starts,
        q_lens=q_lens,
        kv_starts=np.zeros(len(kv_lens), dtype=np.int64),
        kv_lens=kv_lens,
        block_tables=check_block_tables(where, tables, kv_lens, tuple(arrays.key.shape)),
    )


def _last_tokens(
    where: str, batch: int, q_len: int, lengths: Array, tables: Array, pool: tuple[int, ...]
) -> Sequences:
    """Return where the last ``q_len`` tokens of each sequence lie."""
    kv_lens = check_lengths(where, lengths)
    if len(kv_lens) != batch:
        raise ShapeError(
            f"{where}: seq_lens of shape {kv_lens.shape} must have one entry for each of the "
            f"{batch} batch rows of query."
        )
    return Sequences(
        q_starts=np.arange(batch, dtype=np.int64) * q_len,
        q_lens=np.full(batch, q_len, dtype=np.int64),
        kv_starts=np.zeros(batch, dtype=np.int64),
        kv_lens=kv_lens,
        block_tables=check_block_tables(where, tables, kv_lens, pool),
    )


def _check_end(where: str, name: str, lengths: Integers, of: str, total: int) -> None:
    if lengths.sum() != total:
        raise ParameterError(
            f"{where}: {name} ends at {lengths.sum()}, but {of} has {total} tokens; they must "
            "be equal."
        )
