"""The order and the arithmetic of timing, on a clock that only calls advance."""

import gc
import os

import pytest
import torch

from tesseral._errors import ParameterError
from tesseral.bench import timing
from tesseral.bench.timing import Method, Timing, interleave, ratio


class World:
    """A clock, and calls that take a stated time on it."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def clock(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.now += seconds
            self.log.append(name)

        return run


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(timing, "settle", lambda: world.log.append("settle"))
    return world


def test_sides_take_turns_and_turns_rotate(world):
    sides = {name: world.call(name, 1.0) for name in "ab"}
    interleave(sides, Method(repeats=3, section_s=0.5), seconds={"a": 1, "b": 1}, clock=world.clock)
    assert [entry for entry in world.log if entry != "settle"] == list("abbaab")
    assert world.log[::2] == ["settle"] * 6


def test_a_short_call_is_made_several_times_after_one_that_is_not_timed(world):
    sides = {"short": world.call("short", 0.25)}
    found = interleave(
        sides, Method(repeats=2, section_s=1.0), seconds={"short": 0.25}, clock=world.clock
    )
    assert world.log == ["settle", *["short"] * 5] * 2
    assert found == {"short": Timing(samples_s=(0.25, 0.25), calls=4)}


def test_what_a_call_takes_is_found_out_where_it_is_not_known(world):
    found = interleave(
        {"x": world.call("x", 0.01)}, Method(repeats=1, section_s=0.1), clock=world.clock
    )
    assert found["x"].calls in (10, 11)
    assert found["x"].median_s == pytest.approx(0.01)


def test_the_collector_rests_while_times_are_taken(world):
    seen = []
    interleave({"x": lambda: seen.append(gc.isenabled())}, Method(repeats=1, section_s=0.0))
    assert seen[-1] is False
    assert gc.isenabled()


def test_median_and_spread():
    odd = Timing(samples_s=(5.0, 1.0, 2.0, 3.0, 4.0), calls=1)
    assert odd.median_s == 3.0
    assert odd.spread == pytest.approx((4.0 - 2.0) / 3.0)
    assert Timing(samples_s=(2.0,), calls=1).spread == 0.0
    assert Timing.from_dict(odd.as_dict()) == odd


def test_a_ratio_is_taken_within_each_repeat():
    # the machine is three times as slow in two repeats, and both sides meet it
    ours = Timing(samples_s=(1.0, 3.0, 3.0, 1.0, 1.0), calls=1)
    theirs = Timing(samples_s=(2.0, 6.0, 6.0, 2.0, 6.0), calls=1)
    assert ratio(theirs, ours) == 2.0
    # of a slow side there are the first, the second and the fourth: of 5 repeats, every 5 / 3
    assert ratio(Timing(samples_s=(4.0, 15.0, 6.0), calls=1), ours) == 5.0


def test_a_slow_side_takes_part_in_fewer_repeats_and_the_slowest_in_none(world):
    sides = {
        "fast": world.call("fast", 1.0),
        "slow": world.call("slow", 4.0),
        "slowest": world.call("slowest", 11.0),
    }
    method = Method(repeats=5, section_s=0.5, patience_s=10.0)
    found = interleave(sides, method, clock=world.clock)
    called = [entry for entry in world.log if entry != "settle"]
    first = called.index("slowest")
    assert called[first:] == ["slowest", "fast", "slow", *["fast"] * 2, "slow", "fast", "fast"]
    assert {name: timing.as_dict()["repeats"] for name, timing in found.items()} == {
        "fast": 5,
        "slow": 2,
        "slowest": 1,
    }
    assert ratio(found["slow"], found["fast"]) == 4.0
    assert ratio(found["slowest"], found["fast"]) == 11.0


def test_settling_waits_for_the_process_to_rest_and_not_for_ever(monkeypatch):
    now, used, steps = [0.0], [0.0], []

    def sleep(seconds):
        now[0] += seconds
        used[0] += seconds if len(steps) < busy else 0.0
        steps.append(seconds)

    monkeypatch.setattr(timing.time, "sleep", sleep)
    monkeypatch.setattr(timing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(timing.time, "process_time", lambda: used[0])
    busy = 3
    timing.settle()
    assert len(steps) == busy + 1
    busy, before = 10**6, now[0]
    timing.settle()
    assert now[0] - before == pytest.approx(0.2, abs=0.01)


def test_threads_are_those_asked_for_inside_and_what_they_were_after(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "5")
    before = torch.get_num_threads()
    with timing.using_threads(3) as count:
        assert (count, torch.get_num_threads(), os.environ["TESSERAL_CPU_THREADS"]) == (3, 3, "3")
    assert (torch.get_num_threads(), os.environ["TESSERAL_CPU_THREADS"]) == (before, "5")
    monkeypatch.delenv("TESSERAL_CPU_THREADS")
    with timing.using_threads(None):
        assert "TESSERAL_CPU_THREADS" in os.environ
    assert "TESSERAL_CPU_THREADS" not in os.environ
    with pytest.raises(ParameterError, match="threads=0 is not"), timing.using_threads(0):
        pass
