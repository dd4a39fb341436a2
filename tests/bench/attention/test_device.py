"""The benchmark of a CUDA device: its cases, what it makes of times, and one small run."""

import dataclasses
import json

import pytest
import torch

from support.kernels import DEVICE, kernels, needs_kernels
from tesseral.bench.attention.cases import Bar, Case
from tesseral.bench.attention.device import cases, record, run, sides
from tesseral.bench.attention.device.cases import TABLE, DeviceContest
from tesseral.bench.attention.device.record import DeviceRecord, DeviceRow
from tesseral.bench.timing import Timing

TINY = Case(q_len=64, kv_len=64, q_heads=2, kv_heads=2, head_dim=64, dtype="float16", causal=True)
NOTHING = DeviceRecord(machine={"accelerators": []}, repeats=3, rows=())


@pytest.fixture(scope="module")
def _kernels():
    with kernels():
        yield


def bars_of(length, *, causal, backend="triton"):
    (contest,) = (
        c for c in TABLE
        if (c.case.q_len, c.case.causal, c.backend) == (length, causal, backend)
    )  # fmt: skip
    return {bar.against: bar.at_least for bar in contest.bars}


def test_the_table_asks_of_every_length_what_must_hold_of_it():
    for length in (1024, 2048, 4096, 8192, 16384, 32768):
        for causal in (False, True):
            bars = bars_of(length, causal=causal)
            assert bars["SDPA efficient"] == 1.43
            middle = 4096 <= length <= 16384
            assert bars.get("FlexAttention") == (1.05 if middle else None)
            assert bars.get("SDPA cuDNN") == (0.75 if middle else None)
            assert bars.get("SDPA flash") == (1.25 if length == 16384 else None)
            assert bars.get("unfused") == (5.0 if (length, causal) == (8192, False) else None)
    assert bars_of(4096, causal=True, backend="turing") == {"SDPA efficient": 1.2}


def test_decoding_is_asked_with_cold_and_warm_caches_and_over_codes():
    asked = {
        (c.case.kv_len, c.case.kv_bits, c.cache): {bar.against: bar.at_least for bar in c.bars}
        for c in TABLE
        if c.case.decoding
    }
    assert asked == {
        (131072, None, "cold"): {"copy": 0.85},
        (8192, None, "cold"): {"SDPA flash": 1.5},
        (8192, None, "warm"): {"SDPA flash": 2.0},
        (131072, 8, "cold"): {"our fp16": 1.7},
        (131072, 4, "cold"): {"our fp16": 2.8},
    }


def test_whoever_is_measured_is_known_and_every_bar_has_its_peer():
    for contest in TABLE:
        assert set(contest.peers) <= set(sides.SIDES)
        assert {bar.against for bar in contest.bars} <= set(contest.peers)
    assert len({contest.name for contest in TABLE}) == len(TABLE)


def row(ours, peers, **given):
    contest = DeviceContest(
        case=TINY, peers=("SDPA flash", "SDPA efficient"),
        bars=(Bar(against="SDPA flash", at_least=1.5), Bar(against="SDPA efficient", at_least=3.0)),
    )  # fmt: skip
    timings = {name: Timing(samples_s=samples, calls=1) for name, samples in peers.items()}
    own = None if ours is None else Timing(samples_s=ours, calls=1)
    return DeviceRow(
        contest=contest, ours=own, peers=timings, refusals={}, explanation="why", **given
    )


def test_a_bar_is_a_median_of_ratios_and_told_as_met_or_missed():
    found = row((1.0, 2.0), {"SDPA flash": (2.0, 4.0), "SDPA efficient": (2.0, 4.0)})
    _, lines = record.bar_table(dataclasses.replace(NOTHING, rows=(found,)))
    assert [line[1:] for line in lines] == [
        ["SDPA flash", "1.50x", "2.00x", "yes"],
        ["SDPA efficient", "3.00x", "2.00x", "NO"],
    ]
    plain = json.loads(json.dumps(dataclasses.replace(NOTHING, rows=(found,)).as_dict()))
    assert plain["schema"] == record.SCHEMA
    assert [bar["met"] for bar in plain["rows"][0]["bars"]] == [True, False]
    _, lines = record.side_table(dataclasses.replace(NOTHING, rows=(found,)))
    assert [line[1] for line in lines] == ["ours (triton)", "SDPA flash", "SDPA efficient"]


def test_who_cannot_run_is_told_with_the_reason():
    found = dataclasses.replace(
        row(None, {"SDPA flash": (2.0,)}), refusals={"ours": "unknown backend"}
    )
    _, lines = record.bar_table(dataclasses.replace(NOTHING, rows=(found,)))
    assert [line[-1] for line in lines] == ["not run: unknown backend"] * 2


def same(query, *_):
    return query


def on_this_machine(monkeypatch, sides_here):
    """Let contests be of tiny arrays on the CPU, and of functions whose times are known."""
    from tesseral.bench.attention.inputs import make_inputs

    monkeypatch.setattr(run, "make_device_inputs", lambda *_: make_inputs(TINY))
    monkeypatch.setattr(run, "ours", lambda *_: same)
    monkeypatch.setattr(run, "SIDES", sides_here)

    def time_in_turns(sides, repeats, section_s):
        return {name: Timing(samples_s=(1.0,) * repeats, calls=1) for name in sides}

    monkeypatch.setattr(run, "time_in_turns", time_in_turns)


def test_a_peer_that_differs_or_fails_is_told_and_the_others_are_timed(monkeypatch):
    def fails(*_):
        raise RuntimeError("no kernel\nfor this")

    on_this_machine(
        monkeypatch,
        {
            "SDPA flash": lambda _: same,
            "SDPA efficient": lambda _: lambda query, *_: query + 1,
            "SDPA cuDNN": lambda _: fails,
            "unfused": lambda _: lambda query, *_: query * (1 + 2**-8),
        },
    )
    contest = DeviceContest(
        case=TINY, peers=("SDPA flash", "SDPA efficient", "SDPA cuDNN", "unfused"), bars=()
    )
    saved = []
    found = run.run_on_device(
        lambda _: None, repeats=2, contests=(contest, contest), save=saved.append
    )
    for row in found.rows:
        assert set(row.peers) == {"SDPA flash", "unfused"}  # which rounds in between
        assert "ours and SDPA efficient differ by" in row.refusals["SDPA efficient"]
        assert row.refusals["SDPA cuDNN"] == "no kernel"
    assert [len(record.rows) for record in saved] == [1, 2]


@needs_kernels
def test_reading_sums_every_word_of_both_sides():
    from tesseral.bench.attention.device.reading import reader

    first, second = torch.arange(2 * 70000, dtype=torch.int32, device=DEVICE).view(2, -1)
    sums = reader(DEVICE)(first.view(torch.float16), second.view(torch.float16))
    assert sums.sum().to(torch.int32) == (first + second).sum().to(torch.int32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_small_table_is_measured():
    decode = dataclasses.replace(TINY, q_len=1, kv_len=4096, causal=False, kv_bits=4)
    dense = dataclasses.replace(decode, kv_bits=None)
    contests = (
        DeviceContest(case=TINY, peers=(cases.EFFICIENT,), bars=()),
        DeviceContest(case=TINY, backend="missing", peers=(cases.EFFICIENT,), bars=()),
        DeviceContest(case=decode, peers=(cases.OUR_FP16, cases.COPY), bars=()),
        DeviceContest(case=dense, peers=(cases.FLASH, cases.READ), bars=()),
    )
    steps = []
    found = run.run_on_device(steps.append, repeats=3, contests=contests)
    assert [step.done for step in steps] == [0, 1, 2, 3]
    for row in found.rows:
        assert set(row.peers) == set(row.contest.peers)
        assert all(timing.median_s > 0 for timing in row.peers.values())
    assert found.rows[0].ours is not None
    assert "missing" in found.rows[1].refusals["ours"]
    assert len(found.rows[2].ours.samples_s) == 3
