"""The benchmark of contexts that do not fit runs at toy size, and says what it found."""

import json
from dataclasses import replace

import pytest
import torch

from tesseral.bench.offload import run as module
from tesseral.bench.offload import tables
from tesseral.bench.offload.cases import COPIED, OFFLOADING, OURS, PARTS, SMOKE
from tesseral.bench.offload.run import bars, run


@pytest.fixture(scope="module")
def record():
    saved = []
    plan = replace(SMOKE, steps=10)
    found = run(plan, lambda _: None, PARTS, lambda record: saved.append(json.dumps(record)))
    assert len(saved) == len(PARTS)
    assert json.loads(saved[-1])["bars"] == found["bars"]
    return found


def test_every_part_is_measured_and_half_of_the_layers_lie_on_the_host(record):
    assert set(PARTS) < set(record)
    assert set(record["decode"]["sides"]) == {OURS, COPIED}
    for name in ("decode", "prefill", "million"):
        assert record[name]["memory"]["host_layers"] == (1, 3)
    assert record["prefill"]["finite"]
    assert record["million"]["memory"]["key_bits"] == 4
    assert len(record["prefill"]["chunks_s"]) == 4


def test_logits_keep_the_error_that_they_have_without_offloading(record):
    sides = record["logits"]["sides"]
    assert len(sides) == 6
    for side in sides.values():
        assert side["error"] <= 2 * side["error_without"] + 1e-6
        assert side["same_likeliest"] == 1


def test_timelines_name_who_works(record):
    rows = {work["row"] for work in record["decode"]["sides"][OURS]["timeline"]}
    assert rows == {"device", "CPU"}
    copied = {work["row"] for work in record["decode"]["sides"][COPIED]["timeline"]}
    assert copied == {"device"}


def test_tables_and_the_chart_show_all_of_it(record):
    rows = tables.decoding(record)[1]
    assert [row[0] for row in rows[:3]] == [OURS, COPIED, OFFLOADING]
    assert len(rows) == 5
    assert rows[2][1] == "refused: it needs a CUDA device"
    assert len(tables.prompts(record)[1]) == 2
    assert len(tables.bars(record)[1]) == len(record["bars"])
    assert "attention, 4 bits" in [row[0] for row in tables.rates(record)[1]]
    from tesseral.bench.offload.chart import chart

    assert chart(record).startswith(b"\x89PNG")


def test_what_does_not_fit_is_told_and_the_rest_goes_on(monkeypatch):
    def refuse(plan, models, watch):
        raise torch.cuda.OutOfMemoryError("no room")

    for name in ("decode", "prefill"):
        monkeypatch.setitem(module._PARTS, name, refuse)
    found = run(replace(SMOKE, steps=10), lambda _: None, ("decode", "prefill", "million"))
    assert found["decode"] == found["prefill"] == {"refused": "no room"}
    holds = {bar["name"]: bar["holds"] for bar in found["bars"]}
    assert holds["decode, completes"] is False
    assert holds["prefill, completes"] is False
    assert holds["million, completes"] is True
    assert len(tables.prompts(found)[1]) == 1


def test_bars_compare_with_both_peers():
    sides = {OURS: 0.1, COPIED: 0.15, OFFLOADING: 0.19}
    steps = {name: {"median_s": seconds} for name, seconds in sides.items()}
    steps[OURS]["reserved_bytes"] = 33
    record = {
        "peer": steps.pop(OFFLOADING),
        "decode": {"sides": steps, "memory": {"gpu_bytes": 32}},
    }
    holds = {bar["name"]: bar["holds"] for bar in bars(record)}
    assert holds == {
        "decode, completes": True,
        f"decode, times as fast as {COPIED}": True,
        f"decode, times as fast as {OFFLOADING}": False,
        "decode, share of the budget reserved": False,
    }
