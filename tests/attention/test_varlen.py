"""Packed and paged sequences: each is attended to as if it were alone."""

import inspect
import itertools

import numpy as np
import pytest
import torch

from attention.cases import oracle, skip_refusals, to_float64
from attention.test_packed import quantize, to_torch
from tesseral import _errors
from tesseral.attention import (
    attention_decode,
    attention_varlen,
    explain_decode,
    explain_varlen,
)
from tesseral.attention.backends.blockwise import BlockwiseBackend
from tesseral.attention.registry import BACKENDS
from tesseral.attention.tiling import BlockCount
from tesseral.core import PackedTensor

Q_HEADS, KV_HEADS, DIM, VALUE_DIM = 4, 2, 16, 24
LENGTHS = [(3, 3), (17, 40), (0, 5), (1, 33), (9, 4), (2, 0)]  # (queries, keys) of each sequence
BLOCK = 8
TOLERANCES = {"float64": 1e-12, "float32": 2e-5, "bfloat16": 0.04, "float16": 0.005}
RULES = {
    "full": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "window": (6, 2)},
    "all": {
        "is_causal": True,
        "scale": 0.3,
        "softcap": 4.0,
        "sinks": np.array([0.5, -1.0, -np.inf, 2.0]),
        "alibi_slopes": np.linspace(0.1, 0.4, 4),
    },
    "slopes": {"alibi_slopes": np.arange(24.0).reshape(6, 4) / 40},
}
DECODE_RULES = {name: {k: r for k, r in rules.items() if k != "is_causal"}
                for name, rules in RULES.items() if name != "causal"}  # fmt: skip


def make_packed(lengths=LENGTHS, seed=0):
    """Return float64 query, key and value of packed sequences, and where they start and end."""
    rng = np.random.default_rng(seed)
    edges = [np.cumsum([0, *side]) for side in zip(*lengths, strict=True)]
    query = rng.standard_normal((edges[0][-1], Q_HEADS, DIM))
    key = rng.standard_normal((edges[1][-1], KV_HEADS, DIM))
    value = rng.standard_normal((edges[1][-1], KV_HEADS, VALUE_DIM))
    return (query, key, value), edges


def make_pool(tokens, edges, *, block=BLOCK, seed=0, filling=np.nan):
    """Return tokens of packed sequences scattered over a pool, with the tables to find them."""
    rng = np.random.default_rng(seed)
    lengths = np.diff(edges)
    needed = -(-lengths // block)
    pool = np.full((needed.sum() + 3, block, *tokens.shape[1:]), filling)
    free = list(rng.permutation(len(pool)))
    tables = np.full((len(lengths), needed.max(initial=0) + 2), -7)
    for s, (start, stop) in enumerate(itertools.pairwise(edges)):
        for b in range(needed[s]):
            part = tokens[start + b * block : min(stop, start + (b + 1) * block)]
            tables[s, b] = free.pop()
            pool[tables[s, b], : len(part)] = part
    return pool, tables


def expected(inputs, edges, rules):
    """Return output and lse of every sequence by the oracle, packed."""
    outputs, lses = [], []
    for s in range(len(edges[0]) - 1):
        parts = [
            array[side[s] : side[s + 1]].transpose(1, 0, 2)[None]
            for array, side in zip(inputs, (edges[0], edges[1], edges[1]), strict=True)
        ]
        options = dict(rules)
        if np.ndim(options.get("alibi_slopes")) == 2:
            options["alibi_slopes"] = options["alibi_slopes"][s : s + 1]
        output, lse = oracle(*parts, **options)
        outputs.append(output[0].transpose(1, 0, 2))
        lses.append(lse[0].T)
    return np.concatenate(outputs), np.concatenate(lses)


def cast(array, framework, dtype):
    array = torch.asarray(array).to(getattr(torch, dtype))
    return array if framework == "torch" else array.numpy()


def converted(rules, framework):
    return {
        name: cast(rule, framework, "float64") if isinstance(rule, np.ndarray) else rule
        for name, rule in rules.items()
    }


def assert_close(got, wanted, dtype):
    for ours, theirs in zip(got, wanted, strict=True):
        tolerance = TOLERANCES[dtype]
        np.testing.assert_allclose(to_float64(ours), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize(
    ("framework", "dtype"),
    [("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"), ("torch", "bfloat16")],
)
def test_packed_sequences_are_attended_to_one_by_one(backend, rules, framework, dtype):
    inputs, edges = make_packed()
    arrays = [cast(array, framework, dtype) for array in inputs]
    with skip_refusals():
        got = attention_varlen(
            *arrays,
            cu_seqlens_q=edges[0],
            cu_seqlens_k=edges[1],
            **converted(rules, framework),
            return_lse=True,
            backend=backend,
        )
    assert got[0].dtype == arrays[0].dtype
    assert type(got[0]) is type(got[1]) is type(arrays[0])
    assert str(got[1].dtype).endswith("float64" if dtype == "float64" else "float32")
    inputs = [to_float64(array) for array in arrays]
    assert_close(got, expected(inputs, edges, rules), dtype)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("rules", DECODE_RULES.values(), ids=DECODE_RULES.keys())
@pytest.mark.parametrize("q_len", [1, 5])
@pytest.mark.parametrize(
    ("framework", "dtype"), [("numpy", "float64"), ("torch", "float32"), ("torch", "float16")]
)
def test_decoding_finds_its_keys_in_the_pool(backend, rules, q_len, framework, dtype):
    inputs, edges = make_packed([(q_len, kv_len) for _, kv_len in LENGTHS])
    inputs = [to_float64(cast(array, framework, dtype)) for array in inputs]
    wanted = expected(inputs, edges, {"is_causal": True, **rules})
    query = cast(inputs[0].reshape(-1, q_len, Q_HEADS, DIM), framework, dtype)
    (key, tables), (value, _) = (make_pool(side, edges[1]) for side in inputs[1:])
    with skip_refusals():
        output, lse = attention_decode(
            query,
            cast(key, framework, dtype),
            cast(value, framework, dtype),
            block_tables=tables,
            seq_lens=np.diff(edges[1]),
            **converted(rules, framework),
            return_lse=True,
            backend=backend,
        )
    assert output.shape == (*query.shape[:3], VALUE_DIM)
    assert lse.shape == query.shape[:3]
    assert output.dtype == query.dtype
    output, lse = output.reshape(-1, *output.shape[2:]), lse.reshape(-1, Q_HEADS)
    assert_close((output, lse), wanted, dtype)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_packed_queries_may_find_their_keys_in_a_pool_too(backend, dtype):
    inputs, edges = make_packed()
    (key, tables), (value, _) = (make_pool(side, edges[1]) for side in inputs[1:])
    with skip_refusals():
        got = attention_varlen(
            *(array.astype(dtype) for array in (inputs[0], key, value)),
            cu_seqlens_q=edges[0].astype(np.int32),
            cu_seqlens_k=edges[1].astype(np.int32),
            block_tables=tables.astype(np.int32),
            is_causal=True,
            return_lse=True,
            backend=backend,
        )
    assert_close(got, expected(inputs, edges, {"is_causal": True}), dtype)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("paged", [False, True], ids=["packed", "paged"])
def test_quantised_keys_and_values(backend, bits, framework, paged):
    (query, *sides), edges = make_packed()
    quantized = [quantize(side, bits, groups=1) for side in sides]
    dense = [side.dequantize() for side in quantized]
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1]}
    if paged:
        pools = [make_pool(side.data, edges[1], filling=0) for side in quantized]
        options["block_tables"] = pools[0][1]
        quantized = [
            PackedTensor(
                data=pool.astype(np.uint8),
                scale=make_pool(side.scale, edges[1], filling=0.0)[0],
                offset=make_pool(side.offset, edges[1], filling=0.0)[0],
                bits=bits,
                length=side.length,
            )
            for side, (pool, _) in zip(quantized, pools, strict=True)
        ]
    wanted = expected((query, *dense), edges, {"is_causal": True})
    if framework == "torch":
        query, quantized = torch.asarray(query), [to_torch(side) for side in quantized]
    for dtype in ("float64", "float32"):
        with skip_refusals():
            got = attention_varlen(
                cast(query, framework, dtype), *quantized, **options, is_causal=True,
                return_lse=True, backend=backend,
            )  # fmt: skip
        assert_close(got, wanted, dtype)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_strides_do_not_matter(backend, dtype):
    inputs, edges = make_packed()
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1], "backend": backend}
    arrays = [torch.asarray(array.astype(dtype)) for array in inputs]
    strided = [array.transpose(0, 1).contiguous().transpose(0, 1) for array in arrays]
    sparse = [torch.stack([array, array + 1], -1)[..., 0] for array in arrays]
    with skip_refusals():
        straight = attention_varlen(*arrays, **options)
        for others in (strided, sparse):
            torch.testing.assert_close(attention_varlen(*others, **options), straight)


@pytest.mark.parametrize("backend", BACKENDS.names)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_no_sequences_and_no_tokens_give_empty_outputs(backend, dtype):
    none = np.zeros((0, 4, 16), dtype)
    for edges in (np.array([0]), np.array([0, 0, 0])):
        with skip_refusals():
            output, lse = attention_varlen(
                none, none[:, :2], none[:, :2, :5], cu_seqlens_q=edges, cu_seqlens_k=edges,
                return_lse=True, backend=backend,
            )  # fmt: skip
        assert (output.shape, lse.shape) == ((0, 4, 5), (0, 4))
        assert (output.dtype, lse.dtype) == (dtype, dtype)
    pool = np.zeros((3, 4, 2, 16), dtype)
    with skip_refusals():
        output = attention_decode(
            np.zeros((0, 1, 4, 16), dtype), pool, pool, backend=backend,
            block_tables=np.zeros((0, 2), int), seq_lens=np.zeros(0, int),
        )  # fmt: skip
    assert output.shape == (0, 1, 4, 16)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("framework", [np.asarray, torch.asarray], ids=["numpy", "torch"])
def test_lengths_may_come_from_another_framework(kind, framework):
    inputs, edges = make_packed()
    sides = [framework(side.astype(kind)) for side in edges]
    got = attention_varlen(*inputs, cu_seqlens_q=sides[0], cu_seqlens_k=sides[1])
    assert_close((got,), expected(inputs, edges, {})[:1], "float64")


def test_a_backend_that_takes_all_sequences_at_once_is_asked_once(monkeypatch):
    calls = []

    def together(self, problem, arrays, sequences):
        calls.append((problem, arrays, sequences))
        return np.zeros((32, 4, VALUE_DIM)), np.zeros((32, 4))

    monkeypatch.setattr(BlockwiseBackend, "forward_sequences", together, raising=False)
    inputs, edges = make_packed()
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1], "backend": "blockwise"}
    attention_varlen(*inputs, **options, is_causal=True)
    [(problem, arrays, sequences)] = calls
    assert (problem.batch, problem.q_len, problem.kv_len) == (6, 17, 40)
    assert problem.causal
    assert arrays.query is inputs[0]
    assert arrays.key is inputs[1]
    assert sequences.block_tables is None
    for got, wanted in zip(
        (sequences.q_starts, sequences.q_lens, sequences.kv_starts, sequences.kv_lens),
        (edges[0][:-1], np.diff(edges[0]), edges[1][:-1], np.diff(edges[1])),
        strict=True,
    ):
        assert got.dtype == np.int64
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, wanted)


def test_the_environment_names_a_backend_here_too(monkeypatch):
    monkeypatch.setenv("TESSERAL_ATTENTION_BACKEND", "fast")
    inputs, edges = make_packed()
    with pytest.raises(_errors.BackendError, match="no backend 'fast'"):
        attention_varlen(*inputs, cu_seqlens_q=edges[0], cu_seqlens_k=edges[1])


(QUERY, KEY, VALUE), (EDGES_Q, EDGES_K) = make_packed()
POOL, TABLES = np.zeros((6, BLOCK, KV_HEADS, DIM)), np.arange(6).reshape(2, 3)
VARLEN_MISFITS = {
    "list": ({"cu_seqlens_q": [0, 32]}, _errors.DtypeError, "cu_seqlens_q must be .* got list"),
    "floats": ({"cu_seqlens_k": EDGES_K * 1.0}, _errors.DtypeError, "must be int32 or int64, got"),
    "axes": ({"cu_seqlens_q": EDGES_Q[None]}, _errors.ShapeError, r"\(n_sequences \+ 1\), got \(1"),
    "empty": ({"cu_seqlens_q": EDGES_Q[:0]}, _errors.ParameterError, "start at 0 .* is empty"),
    "late": ({"cu_seqlens_q": EDGES_Q[1:]}, _errors.ParameterError, "must start at 0 .* at 3"),
    "falling": (
        {"cu_seqlens_k": np.array([0, 5, 3, 85])},
        _errors.ParameterError,
        "cu_seqlens_k must never decrease, but goes from 5 to 3 at sequence 1",
    ),
    "short": (
        {"cu_seqlens_q": np.minimum(EDGES_Q, 31)},
        _errors.ParameterError,
        "cu_seqlens_q ends at 31, but query has 32 tokens",
    ),
    "long": (
        {"cu_seqlens_k": np.append(EDGES_K[:-1], 99)},
        _errors.ParameterError,
        "cu_seqlens_k ends at 99, but key has 85 tokens",
    ),
    "counts": (
        {"cu_seqlens_q": np.array([0, 32])},
        _errors.ShapeError,
        "cu_seqlens_q is for 1 sequences, cu_seqlens_k for 6",
    ),
    "dense_query": (
        {"query": QUERY[None]},
        _errors.ShapeError,
        r"query must .* \(total_q, q_heads",
    ),
    "pool": ({"key": POOL}, _errors.ShapeError, r"key must have shape \(total_k, kv_heads"),
    "value": ({"value": VALUE[1:]}, _errors.ShapeError, "key and value differ in total_k"),
    "head_dim": ({"key": KEY[..., 1:]}, _errors.ShapeError, "query and key differ in head_dim"),
    "no_head_dim": (
        {"query": QUERY[..., :0], "key": KEY[..., :0]},
        _errors.ShapeError,
        "heads and head_dim must be at least 1",
    ),
    "heads": (
        {"query": QUERY[:, :3]},
        _errors.ShapeError,
        "3 query heads cannot be shared among 2",
    ),
    "types": (
        {"value": VALUE.astype("f")},
        _errors.DtypeError,
        "query is float64 but value is flo",
    ),
    "frameworks": ({"key": torch.asarray(KEY)}, _errors.DtypeError, "got numpy and torch"),
    "sinks": ({"sinks": np.zeros(2)}, _errors.ShapeError, r"sinks must have shape \(4,\)"),
    "slopes": ({"alibi_slopes": np.zeros((2, 4))}, _errors.ShapeError, r"\(4,\) or \(6, 4\)"),
    "scale": ({"scale": np.nan}, _errors.ParameterError, "scale=nan must be finite"),
    "window": ({"window": (1, -3)}, _errors.ParameterError, r"window=\(1, -3\) is not a pair"),
    "softcap": ({"softcap": 0.0}, _errors.ParameterError, "softcap=0.0 must be finite and above 0"),
    "tables": (
        {"key": POOL, "value": POOL, "block_tables": TABLES},
        _errors.ShapeError,
        r"block_tables of shape \(2, 3\) must have one row for each of 6 sequences",
    ),
}
DECODE_MISFITS = {
    "query_list": ({"query": [0.0]}, _errors.DtypeError, "needs arrays .* got list"),
    "packed_query": (
        {"query": QUERY},
        _errors.ShapeError,
        r"shape \(batch, q_len, q_heads, head",
    ),
    "dense_key": (
        {"key_pool": KEY},
        _errors.ShapeError,
        r"key .* \(n_blocks, block_size, kv_heads",
    ),
    "no_rows": (
        {"key_pool": POOL[:, :0], "value_pool": POOL[:, :0]},
        _errors.ShapeError,
        "block_size must be at least 1",
    ),
    "pools": ({"value_pool": POOL[1:]}, _errors.ShapeError, "key and value differ in n_blocks, bl"),
    "lengths": (
        {"seq_lens": np.array([3])},
        _errors.ShapeError,
        r"seq_lens of shape \(1,\) must have one entry for each of the 2 batch rows",
    ),
    "negative": (
        {"seq_lens": np.array([3, -1])},
        _errors.ParameterError,
        r"seq_lens\[1\] = -1 must be at least 0",
    ),
    "floats": (
        {"seq_lens": np.ones(2)},
        _errors.DtypeError,
        "seq_lens must be int32 or int64, got",
    ),
    "too_long": (
        {"seq_lens": np.array([3, 25])},
        _errors.ParameterError,
        "sequence 1 has 25 keys, but its row of block_tables holds 3 blocks of 8, room for 24",
    ),
    "beyond": (
        {"block_tables": np.array([[0, 1, 6], [1, 6, 0]])},
        _errors.ParameterError,
        r"block_tables\[1, 1\] = 6 points outside the pool of 6 blocks; they are numbered from 0",
    ),
    "before": (
        {"block_tables": np.array([[0, -1, 0], [-1, 0, 0]])},
        _errors.ParameterError,
        r"block_tables\[1, 0\] = -1 points outside the pool",
    ),
    "rows": (
        {"block_tables": np.zeros((1, 3), int)},
        _errors.ShapeError,
        r"block_tables of shape \(1, 3\) must have one row for each of 2 sequences",
    ),
    "flat": (
        {"block_tables": np.zeros(2, int)},
        _errors.ShapeError,
        r"block_tables must have shape \(n_sequences, max_blocks\), got \(2,\)",
    ),
    "types": ({"key_pool": POOL.astype("f")}, _errors.DtypeError, "query is float64 but key is fl"),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"), VARLEN_MISFITS.values(), ids=VARLEN_MISFITS.keys()
)
def test_packed_calls_that_do_not_fit_are_refused(changes, error, message):
    given = {"query": QUERY, "key": KEY, "value": VALUE}
    given |= {"cu_seqlens_q": EDGES_Q, "cu_seqlens_k": EDGES_K, **changes}
    arrays = [given.pop(name) for name in ("query", "key", "value")]
    with pytest.raises(error, match=rf"^attention_varlen: .*{message}"):
        attention_varlen(*arrays, **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"), DECODE_MISFITS.values(), ids=DECODE_MISFITS.keys()
)
def test_paged_calls_that_do_not_fit_are_refused(changes, error, message):
    given = {"query": np.zeros((2, 1, 4, DIM)), "key_pool": POOL, "value_pool": POOL}
    given |= {"block_tables": TABLES, "seq_lens": np.array([3, 11]), **changes}
    arrays = [given.pop(name) for name in ("query", "key_pool", "value_pool")]
    with pytest.raises(error, match=rf"^attention_decode: .*{message}"):
        attention_decode(*arrays, **given)


@pytest.mark.parametrize(
    ("entry", "explain"), [(attention_varlen, explain_varlen), (attention_decode, explain_decode)]
)
def test_what_explains_an_entry_takes_its_arguments(entry, explain):
    theirs, ours = (inspect.signature(function).parameters for function in (entry, explain))
    assert list(theirs.values()) == list(ours.values())


def test_packed_calls_are_explained_without_being_run(monkeypatch):
    monkeypatch.setattr(BlockwiseBackend, "forward", None)
    x, edges = np.zeros((3072, 8, 64)), np.array([0, 1024, 3072])
    found = explain_varlen(x, x, x, cu_seqlens_q=edges, cu_seqlens_k=edges, is_causal=True)
    assert found.backend == "blockwise"
    assert not found.verdicts["native"].ok
    assert (found.problem.batch, found.problem.q_len) == (2, 2048)
    assert (found.plan.q_tile, found.plan.k_tile) == (256, 1024)
    assert found.blocks == BlockCount(full=4, partial=4 + 8, empty=4)
    with pytest.raises(_errors.ParameterError, match="cu_seqlens_k ends at 2048"):
        explain_varlen(x, x, x, cu_seqlens_q=edges, cu_seqlens_k=np.array([0, 1024, 2048]))


def test_paged_calls_are_explained_without_being_run(monkeypatch):
    monkeypatch.setattr(BlockwiseBackend, "forward", None)
    pool, query = np.zeros((4, 8, 2, 16)), np.zeros((2, 1, 4, 16))
    tables = {"block_tables": np.array([[0, 1], [2, 3]]), "seq_lens": np.array([16, 9])}
    found = explain_decode(query, pool, pool, **tables)
    assert found.backend == "blockwise"
    assert (found.problem.batch, found.problem.q_len, found.problem.kv_len) == (2, 1, 16)
    assert found.blocks == BlockCount(full=2, partial=0, empty=0)
    with pytest.raises(_errors.BackendError, match="no backend 'fast'"):
        explain_decode(query, pool, pool, **tables, backend="fast")
