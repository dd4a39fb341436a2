"""The sides answer from processes of their own, and bars follow from what they say."""

import json

import pytest

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
