"""The sides answer from processes of their own, and bars follow from what they say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tesseral._errors import BackendError
from tesseral.bench.llm import cases, run
from tesseral.bench.llm.process import started
from tesseral.bench.llm.sides import TransformersSide, answer
from tesseral.bench.memory import Peak
from tesseral.bench.timing import Timing


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    said = []
    folder = tmp_path_factory.mktemp("models")
    made = run.make_sides(cases.SMOKE, folder, said.append)
    assert said[:2] == ["random weights", "quantisation"]
    count = len(said)
    assert run.make_sides(cases.SMOKE, folder, said.append) == made
    assert len(said) == count  # nothing is made twice
    return made


def test_the_sides_have_the_same_weights(sides):
    ours, theirs = (TransformersSide(side["path"], side["attention"]) for side in sides[:2])
    assert (sides[0]["name"], sides[1]["name"]) == (cases.OURS, cases.BFLOAT16)
    linear = 2 * (2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512)
    output = 2 * 4096 * 256
    assert theirs.weight_bytes() == pytest.approx(2 * linear + output, rel=0.01)
    assert ours.weight_bytes() == pytest.approx(linear / 2 + output, rel=0.1)


def test_a_side_forgets_what_it_generated(sides):
    for side in sides[:2]:
        loaded = TransformersSide(side["path"], side["attention"])
        loaded.prefill(run.tokens(20, cases.SMOKE))
        token = loaded._next
        loaded.decode(3)
        assert (loaded._cache.get_seq_length(), loaded._next is token) == (20, True)
        answered = answer(loaded, Peak(), {"do": "decode", "count": 2})
        assert answered["seconds"] > 0
        assert loaded._cache.get_seq_length() == 20


def test_a_side_runs_in_a_process_of_its_own(sides):
    with started(sides[:1], threads=1) as processes:
        process = processes[cases.OURS]
        answered = process.ask(do="prefill", tokens=run.tokens(20, cases.SMOKE))
        assert answered["peak_bytes"] is None or answered["peak_bytes"] > answered["weight_bytes"]
        with pytest.raises(BackendError, match=f"{cases.OURS}' ended with status 1"):
            process.ask(do="prefill", tokens=[10**9])


def test_keys_and_values_are_put_behind_those_that_were_read(sides):
    loaded = TransformersSide(sides[1]["path"], sides[1]["attention"])
    loaded.prefill(run.tokens(20, cases.SMOKE))
    before = [layer.keys.clone() for layer in loaded._cache.layers]
    loaded.fill(30)
    assert [layer.keys.shape for layer in loaded._cache.layers] == [(1, 2, 50, 32)] * 2
    assert all(
        torch.equal(layer.keys[:, :, :20], keys)
        for layer, keys in zip(loaded._cache.layers, before, strict=True)
    )
    loaded.decode(2)
    assert loaded._cache.get_seq_length() == 50


def test_what_allocates_computes_no_products_and_keeps_all_that_reading_keeps(sides):
    loaded = TransformersSide(sides[1]["path"], sides[1]["attention"])
    original = torch.nn.functional.linear
    loaded.allocate(run.tokens(20, cases.SMOKE))
    assert torch.nn.functional.linear is original
    keys = loaded._cache.layers[0].keys
    assert keys.shape == (1, 2, 20, 32)
    weight = loaded._model.model.layers[0].self_attn.v_proj.weight
    values = loaded._cache.layers[0].values
    assert torch.equal(values, weight.sum().expand_as(values))


def test_a_slow_side_reads_a_part_and_takes_fewer_turns(sides):
    plan = replace(cases.SMOKE, reading_s=0, turns_s=0)
    record = run.run(plan, Path(sides[0]["path"]).parent, lambda _: None, threads=1)
    read = {name: side["tokens_read"] for name, side in record["sides"].items()}
    assert (read[cases.OURS], read[cases.BFLOAT16]) == ([64], [8])
    assert set(record["memory"]) == {cases.OURS, cases.BFLOAT16}
    assert [bar["name"].split(",")[0] for bar in record["bars"]][:1] == ["decode"]


def test_bars_say_how_many_times_as_fast_and_what_share_of_memory():
    def side(prefill, decode):
        timings = {"prefill": prefill, "decode": decode}
        return {what: Timing(samples_s=(s, s), calls=1).as_dict() for what, s in timings.items()}

    record = {
        "sides": {cases.OURS: side(1.0, 0.1), cases.BFLOAT16: side(1.4, 0.6)},
        "memory": {cases.OURS: 40, cases.BFLOAT16: 100},
    }
    found = run.bars(json.loads(json.dumps(record)))
    assert [(bar["value"], bar["holds"]) for bar in found] == [
        (pytest.approx(6), True),
        (pytest.approx(1.4), False),
        (0.4, True),
    ]


def test_a_side_that_took_fewer_turns_is_compared_in_those():
    def timed(*samples):
        return {"decode": {"samples_s": list(samples)}}

    sides = {cases.OURS: timed(1.0, 2.0), cases.BFLOAT16: timed(6.0)}
    assert run._times_as_fast(sides, "decode", cases.BFLOAT16) == 6.0
