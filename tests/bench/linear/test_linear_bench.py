"""The benchmark of linear layers: what is compared, and what the record says of it."""

import json

import pytest
import torch

from tesseral._errors import TesseralError
from tesseral.bench.ceilings import Ceilings
from tesseral.bench.linear import run, sides, tables
from tesseral.bench.linear.cases import INPUT, READ, TABLE, Bar, Case, Contest
from tesseral.bench.timing import Method, Timing

CEILINGS = Ceilings(threads=2, products={"wide": {"dot_int8": 1e12}}, read=1e10, buffer_bytes=2**20)
SMALL = {"in_features": 64, "out_features": 32}


def timing(*samples):
    return Timing(samples_s=samples, calls=1)


def test_the_table_asks_for_what_must_hold():
    needed = {
        (c.case.tokens, c.case.dtype): {b.against: b.at_least for b in c.bars}
        for c in TABLE
        if c.bars
    }
    assert needed[2048, "float32"] == {"torch float32": 3.3}
    assert needed[256, "bfloat16"] == {"torch bfloat16": 1.3}
    assert needed[1, "bfloat16"] == {"torch bfloat16": 5.0, READ: 0.6}
    assert INPUT.bars == (Bar(against="unfused", at_least=3.0),)


@pytest.mark.parametrize("change", [{}, {"group_size": 16}, {"activation_bits": 8}], ids=str)
@pytest.mark.parametrize("tokens", [1, 20])
def test_every_side_of_a_small_case_runs(tokens, change):
    case = Case(tokens=tokens, **SMALL, **change)
    with torch.inference_mode():
        found = sides.sides(case, {"ours": 2, "torch bfloat16": 2})
        outputs = {name: call() for name, call in found.items()}
    assert set(found) == {"ours", "torch bfloat16"} | ({"torch int8"} if tokens > 16 else set())
    assert all(output.shape == (tokens, 32) for output in outputs.values())


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch):
    case = Case(tokens=2, **SMALL)
    source = sides.quantized_input(case, torch.Generator())
    layer = sides.quantized_layer(case, source, torch.Generator())
    monkeypatch.setattr(layer, "forward", lambda x: torch.zeros(len(x), 32))
    with pytest.raises(TesseralError, match="kernel and torch's operations differ"):
        sides.check(layer, torch.ones(2, 64))


def test_a_record_holds_ratios_shares_and_whether_bars_are_met():
    case = Case(tokens=1, **SMALL)
    contest = Contest(
        case=case, bars=(Bar(against="torch bfloat16", at_least=5), Bar(against=READ, at_least=0.6))
    )
    timings = {
        "ours": timing(1.0, 2.0, 1.0),
        "torch bfloat16": timing(4.0, 8.0, 5.0),
        READ: timing(2**20, 2**21, 2**20),
    }
    row = run.record_of(contest, timings, CEILINGS)
    assert row["ratios"] == {"torch bfloat16": 4.0}
    assert row["shares"][READ] == case.weight_bytes == 32 * (32 + 4)
    assert [bar["met"] for bar in row["bars"]] == [False, True]


def test_weights_are_cold_for_one_token_only():
    assert run.copies_of(Case(tokens=2)) == {"ours": 1, "torch bfloat16": 1}
    copies = run.copies_of(Case(tokens=1))
    assert copies["ours"] * Case(tokens=1).weight_bytes >= 2**23
    assert copies["ours"] > copies["torch bfloat16"] > 1


def test_a_run_is_json_with_tables_and_a_picture(monkeypatch):
    pytest.importorskip("matplotlib")
    small = Contest(
        case=Case(tokens=20, **SMALL), bars=(Bar(against="torch bfloat16", at_least=0),)
    )
    monkeypatch.setattr(run, "TABLE", (small,))
    monkeypatch.setattr(
        run, "INPUT", Contest(case=Case(tokens=3, in_features=64, out_features=0), bars=())
    )
    monkeypatch.setattr(run, "QUICK", Method(repeats=2, section_s=1e-4))
    monkeypatch.setattr(run, "measure_ceilings", lambda _: CEILINGS)
    seen = []
    record = json.loads(json.dumps(run.run(quick=True, threads=1, watch=seen.append)))
    assert seen[0] == "ceilings"
    assert len(seen) == 3
    columns, rows = tables.time_rows(record)
    assert len(rows) == 3 + 2
    assert all(len(row) == len(columns) for row in rows)
    assert tables.bar_rows(record)[1][0][-1] == "yes"
    assert tables.chart(record).startswith(b"\x89PNG")
