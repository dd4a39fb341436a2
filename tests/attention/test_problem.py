"""Every misfit is one clear error; every fit is one record."""

import dataclasses
import weakref

import numpy as np
import pytest
import torch

from attention.cases import make_inputs
from tesseral import _errors
from tesseral.attention import attention, problem
from tesseral.attention.problem import AttentionArrays, AttentionProblem, state_problem
from tesseral.core import PackedTensor

QUERY, KEY, VALUE = make_inputs(3, 5, batch=2, q_heads=4, kv_heads=2, head_dim=8, value_dim=6)


def packed(shape, bits=4):
    return PackedTensor.from_codes(np.zeros(shape, np.int8), np.ones((*shape[:-1], 1)), bits=bits)


def state(**changes):
    arrays = {"query": QUERY, "key": KEY, "value": VALUE}
    rules = {"is_causal": False, "scale": None, "window": None, "softcap": None}
    for name, change in changes.items():
        (rules if name in rules else arrays)[name] = change
    return state_problem(AttentionArrays(**arrays), **rules)


def test_a_call_becomes_a_record_of_what_it_asks():
    problem = state(
        value=packed(VALUE.shape, bits=2),
        is_causal=True,
        window=[3, 0],
        softcap=20,
        mask=np.ones((3, 5), bool),
        sinks=np.zeros(4),
        alibi_slopes=np.zeros((2, 4)),
    )
    assert problem == AttentionProblem(
        batch=2, q_len=3, kv_len=5, q_heads=4, kv_heads=2, head_dim=8, value_dim=6,
        dtype="float64", device="cpu", key_format="dense", value_format="packed2", causal=True,
        window=(3, 0), scale=1 / np.sqrt(8), softcap=20.0, mask="boolean", alibi=True, sinks=True,
    )  # fmt: skip
    assert problem.group == 2


def test_a_record_is_hashable_printable_and_frozen():
    assert len({state(), state(), state(is_causal=True)}) == 2
    assert str(state()).startswith("AttentionProblem(batch=2, q_len=3, kv_len=5, q_heads=4,")
    with pytest.raises(dataclasses.FrozenInstanceError):
        state().batch = 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_types_go_by_one_name_in_every_framework(dtype):
    arrays = [torch.asarray(a).to(getattr(torch, dtype)) for a in (QUERY, KEY, VALUE)]
    assert state(**dict(zip(("query", "key", "value"), arrays, strict=True))).dtype == dtype
    if dtype != "bfloat16":
        arrays = [a.astype(dtype) for a in (QUERY, KEY, VALUE)]
        assert state(**dict(zip(("query", "key", "value"), arrays, strict=True))).dtype == dtype


def test_a_window_open_on_both_sides_is_no_window():
    assert state(window=(-1, -1)) == state()


def test_an_additive_mask_may_have_a_type_of_its_own():
    assert state(mask=np.zeros(5, np.float32)).mask == "additive"


SHAPES = {
    "query_of_three_axes": ({"query": QUERY[0]}, "query must have 4 axes .* got shape"),
    "key_of_three_axes": ({"key": KEY[0]}, "key must have 4 axes"),
    "value_of_three_axes": ({"value": VALUE[0]}, "value must have 4 axes"),
    "packed_key_of_three_axes": ({"key": packed((2, 5, 8))}, "key must have 4 axes"),
    "batch_of_key": ({"key": KEY[:1]}, "the batch sizes differ: query"),
    "batch_of_value": ({"value": VALUE[:1]}, "the batch sizes differ: query"),
    "heads_of_value": ({"value": VALUE[:, :1]}, "key and value differ in heads or length"),
    "length_of_value": ({"value": VALUE[:, :, :4]}, "key and value differ in heads or length"),
    "head_dim": ({"key": KEY[..., :7]}, "query and key differ in head_dim"),
    "packed_head_dim": ({"key": packed((2, 2, 5, 6))}, "query and key differ in head_dim"),
    "indivisible_heads": ({"query": QUERY[:, :3]}, "3 query heads cannot be shared among 2 key"),
    "fewer_query_heads": ({"query": QUERY[:, :1]}, "1 query heads cannot be shared among 2 key"),
    "no_query_heads": ({"query": QUERY[:, :0]}, "heads and head_dim must be at least 1"),
    "no_key_heads": ({"key": KEY[:, :0], "value": VALUE[:, :0]}, "must be at least 1"),
    "no_head_dim": ({"query": QUERY[..., :0], "key": KEY[..., :0]}, "must be at least 1"),
    "no_value_dim": ({"value": VALUE[..., :0]}, "heads and head_dim must be at least 1"),
    "mask": ({"mask": np.zeros((3, 4))}, r"a mask of shape \(3, 4\) does not broadcast"),
    "sinks": ({"sinks": np.zeros(2)}, r"sinks must have shape \(4,\), .* got \(2,\)"),
    "slopes": ({"alibi_slopes": np.zeros((1, 4))}, r"alibi_slopes .* \(4,\) or \(2, 4\)"),
}
TYPES = {
    "list": ({"query": QUERY.tolist()}, "attention: needs arrays .* got list"),
    "packed_query": ({"query": packed((2, 4, 3, 8))}, "needs arrays .* got PackedTensor"),
    "frameworks": ({"key": torch.asarray(KEY)}, "one framework, got numpy and torch"),
    "mask_framework": ({"mask": torch.zeros(5)}, "one framework, got numpy and torch"),
    "scale_framework": (
        {"key": dataclasses.replace(packed(KEY.shape), scale=torch.ones(2, 2, 5, 1))},
        "one framework, got numpy and torch",
    ),
    "integers": ({"query": QUERY.astype(int)}, "query is int64; supported are float16, bfloat16"),
    "complex": ({"query": QUERY + 1j}, "query is complex128; supported are"),
    "key_type": ({"key": KEY.astype(np.float32)}, "query is float64 but key is float32"),
    "value_type": ({"value": VALUE.astype(np.float16)}, "query is float64 but value is float16"),
    "mask_type": ({"mask": np.zeros(5, int)}, "mask must be boolean"),
    "sinks_type": ({"sinks": np.zeros(4, int)}, "sinks must be floating, got int64"),
    "slopes_type": ({"alibi_slopes": np.zeros(4, bool)}, "alibi_slopes must be floating, got bool"),
}
VALUES = {
    "infinite_scale": ({"scale": np.inf}, "scale=inf must be finite"),
    "nan_scale": ({"scale": np.nan}, "scale=nan must be finite"),
    "zero_softcap": ({"softcap": 0.0}, "softcap=0.0 must be finite and above 0; None leaves"),
    "negative_softcap": ({"softcap": -3.0}, "softcap=-3.0 must be finite and above 0"),
    "infinite_softcap": ({"softcap": np.inf}, "softcap=inf must be finite"),
    "worded_scale": ({"scale": "half"}, "attention: scale='half' must be a number"),
    "worded_softcap": ({"softcap": "50"}, "softcap='50' must be a number"),
    "mask_as_causal": ({"is_causal": np.ones((3, 5), bool)}, "is_causal must be True or False"),
    "worded_causal": ({"is_causal": "no"}, "is_causal must be True or False, got 'no'"),
    "window": ({"window": (1, -2)}, r"attention: window=\(1, -2\) is not a pair"),
}


@pytest.mark.parametrize(("changes", "message"), SHAPES.values(), ids=SHAPES.keys())
def test_shapes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(_errors.ShapeError, match=message):
        state(**changes)


@pytest.mark.parametrize(("changes", "message"), TYPES.values(), ids=TYPES.keys())
def test_types_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(_errors.DtypeError, match=message):
        state(**changes)


@pytest.mark.parametrize(("changes", "message"), VALUES.values(), ids=VALUES.keys())
def test_parameters_out_of_range_are_refused(changes, message):
    with pytest.raises(_errors.ParameterError, match=message):
        state(**changes)


@pytest.mark.parametrize("name", ["key", "value", "mask", "sinks", "alibi_slopes"])
def test_arrays_on_two_devices_are_refused(name):
    arrays = {
        "query": torch.asarray(QUERY),
        "key": torch.asarray(KEY),
        "value": torch.asarray(VALUE),
        "mask": torch.zeros(5),
        "sinks": torch.zeros(4),
        "alibi_slopes": torch.zeros(4),
    }
    arrays[name] = arrays[name].to("meta")
    with pytest.raises(_errors.DtypeError, match=f"query is on cpu but {name} is on meta"):
        state(**arrays)


def test_the_entry_refuses_what_the_statement_refuses():
    with pytest.raises(_errors.ShapeError, match="attention: query and key differ in head_dim"):
        attention(QUERY, KEY[..., :7], VALUE)


ARRAYS = {"query": QUERY, "key": KEY, "value": VALUE}


@pytest.mark.parametrize("framework", [np.asarray, torch.asarray], ids=["numpy", "torch"])
def test_a_call_that_was_checked_is_not_checked_again(framework, monkeypatch):
    arrays = {name: framework(array) for name, array in ARRAYS.items()}
    options = {"is_causal": True, "window": (3, 0), "mask": framework(np.ones((3, 5), bool))}
    monkeypatch.setattr(problem, "_KNOWN", {})
    first = state(**arrays, **options)
    monkeypatch.setattr(problem, "check_kinds", None)
    assert state(**{n: array + 1 for n, array in arrays.items()}, **options) is first
    with pytest.raises(TypeError, match="not callable"):
        state(**arrays)


OTHERS = {
    "shape": {"query": QUERY[:, :, :2]},
    "heads": {"query": QUERY[:, :2]},
    "value": {"value": VALUE[..., :5]},
    "dtype": {name: array.astype(np.float32) for name, array in ARRAYS.items()},
    "framework": {name: torch.asarray(array) for name, array in ARRAYS.items()},
    "format": {"key": packed(KEY.shape)},
    "bits": {"key": packed(KEY.shape, bits=8)},
    "mask": {"mask": np.ones(5, bool)},
    "bias": {"mask": np.ones(5)},
    "sinks": {"sinks": np.ones(4)},
    "slopes": {"alibi_slopes": np.ones(4)},
    "causal": {"is_causal": True},
    "scale": {"scale": 2.0},
    "softcap": {"softcap": 2.0},
    "window": {"window": (2, 1)},
    "other_window": {"window": (1, 2)},
}


def test_calls_that_differ_are_told_apart_when_they_are_remembered():
    for _ in range(2):
        found = [state(), *(state(**changes) for changes in OTHERS.values())]
        found = [dataclasses.asdict(p) | {"framework": i == 5} for i, p in enumerate(found)]
        assert len({str(p) for p in found}) == len(found)


@pytest.mark.parametrize(
    ("fit", "misfit"),
    [
        ({"window": (3, 0)}, {"window": (3.0, 0)}),
        ({"scale": 1.0}, {"scale": np.nan}),
        ({"scale": 0.25}, {"scale": "0.25"}),
        ({"mask": np.ones(5)}, {"mask": np.ones(5, int)}),
        ({"sinks": np.ones(4)}, {"sinks": np.ones(3)}),
        ({}, {"key": KEY.astype(np.float32)}),
        ({}, {"value": torch.asarray(VALUE)}),
        ({}, {"query": QUERY.tolist()}),
    ],
)
def test_a_misfit_is_refused_however_often_and_beside_whatever_fit(fit, misfit):
    for _ in range(2):
        state(**fit)
        with pytest.raises(_errors.TesseralError, match=r"^attention: "):
            state(**misfit)


def test_what_is_remembered_stays_bounded(monkeypatch):
    monkeypatch.setattr(problem, "REMEMBERED", 5)
    for length in range(1, 30):
        state(key=np.zeros((2, 2, length, 8)), value=np.zeros((2, 2, length, 6)))
    assert len(problem._KNOWN) <= 5


def test_remembering_keeps_no_array_alive():
    query = QUERY.copy()
    alive = weakref.ref(query)
    state(query=query)
    del query
    assert alive() is None


def test_a_scale_held_in_a_tensor_counts_by_its_value():
    query, key, value = torch.randn(3, 1, 1, 4, 8).unbind()
    scale = torch.tensor(0.5)
    before = attention(query, key, value, scale=scale)
    scale.fill_(2.0)
    found = attention(query, key, value, scale=scale)
    assert not torch.equal(found, before)
    assert torch.equal(found, attention(query, key, value, scale=2.0))
