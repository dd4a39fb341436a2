"""Benchmarks on a CUDA device: what their records say, without one."""

import pytest
from typer.testing import CliRunner

from tesseral.bench import cuda_tables
from tesseral.bench.linear import cuda as linear
from tesseral.bench.linear.cases import Case
from tesseral.bench.llm import cuda as llm
from tesseral.bench.llm.cuda_names import FP16, FUSED, PLAIN, UNFUSED
from tesseral.bench.timing import Timing
from tesseral.cli.main import COMMANDS, build


def timing(*samples):
    return Timing(samples_s=samples, calls=1)


def test_a_layer_is_held_to_cublas(monkeypatch):
    sides = {linear.FP16: timing(3.0, 6.0, 9.0), "ours": timing(1.0, 2.0, 3.0)}
    monkeypatch.setattr(linear, "layer_sides", lambda _: {})
    monkeypatch.setattr(linear, "interleave_graphs", lambda *_: sides)
    row = linear._layer_record(Case(tokens=1), {"ours": 2.5}, 3)
    assert row["ratios"] == {"ours": 3.0}
    (bar,) = row["bars"]
    assert (bar["against"], bar["measured"], bar["met"]) == (linear.FP16, 3.0, True)
    record = {"rows": [row], "device": "one"}
    assert cuda_tables.linear_times(record)[1][1][2:] == ["2000000.0", "50%", "3.00"]
    assert cuda_tables.linear_bars(record)[1][0][3:] == ["3.00", ">= 2.5", "yes"]
    assert cuda_tables.linear_chart(record).startswith(b"\x89PNG")


def test_rows_are_held_to_torch_and_to_copies(monkeypatch):
    sides = {name: timing(1e-5) for name in ("ours", "ours, packed")}
    monkeypatch.setattr(linear, "rows_sides", lambda *_, **__: {})
    monkeypatch.setattr(
        linear, "interleave_graphs", lambda *_: sides | {linear.UNFUSED: timing(5e-5)}
    )
    row = linear._rows_record(4096, 6.0, 1e13, 1)
    share = 4096 * 4096 * 2.5 / 1e-5 / 1e13
    assert row["shares"] == {linear.COPY: pytest.approx(share)}
    assert [bar["met"] for bar in row["bars"]] == [False, True]


def test_a_model_is_held_to_float16_and_to_itself_without_transforms():
    sides = {FP16: 4.0, FUSED: 1.5, PLAIN: 1.45, UNFUSED: 2.0}
    timings = {
        what: {name: timing(seconds) for name, seconds in sides.items()}
        for what in ("prefill", "decode 1", "decode 64")
    }
    memory = {name: dict.fromkeys(timings, 40 if name == FP16 else 16) for name in sides}
    found = {bar["name"]: bar["holds"] for bar in llm.bars(timings, memory)}
    assert len(found) == 8
    assert {name for name, holds in found.items() if not holds} == {"decode 64, share of memory"}
    record = {
        "timings": {w: {n: t.as_dict() for n, t in s.items()} for w, s in timings.items()},
        "memory": memory,
        "plan": {"layers": 4},
        "device": "one",
        "bars": llm.bars(timings, memory),
    }
    assert len(cuda_tables.llm_times(record)[1]) == 12
    assert cuda_tables.llm_bars(record)[1][0][1:] == ["2.67", ">= 1.35", "yes"]
    assert cuda_tables.llm_chart(record).startswith(b"\x89PNG")


@pytest.mark.parametrize("bench", ["linear", "llm"])
@pytest.mark.parametrize(("device", "reason"), [("cuda", "torch sees none"), ("tpu", "must be")])
def test_a_device_that_is_not_there_is_one_line(bench, device, reason, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(build(COMMANDS), ["bench", bench, "--device", device])
    assert result.exit_code == 2
    assert reason in result.output
