"""The whole benchmark on tiny shapes, and the arithmetic of what must hold."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from support.bench_cases import CEILINGS, DECODE, PACKED, PREFILL, TABLE
from tesseral._errors import BackendError
from tesseral.attention.problem import AttentionProblem
from tesseral.attention.registry import BACKENDS
from tesseral.bench.attention import cases, grid, memory, others, run
from tesseral.bench.attention.ablation import REGISTER_ROWS
from tesseral.bench.attention.cases import Bar, Contest
from tesseral.bench.attention.inputs import make_call, make_inputs
from tesseral.bench.attention.record import RowRecord
from tesseral.bench.attention.runners import RUNNERS
from tesseral.bench.timing import Timing


def run_table(with_memory=True):
    steps = []
    record = run.start_record(run.QUICK, 1)
    record = run.run_table(record, steps.append, threads=1, with_memory=with_memory)
    return record, steps


def test_the_table_is_measured_from_first_to_last(tiny):
    record, steps = run_table()
    assert [row.case for row in record.rows] == [contest.case for contest in TABLE]
    assert [list(row.peers) for row in record.rows] == [list(c.peers) for c in TABLE]
    assert [bar.met for row in record.rows for bar in row.bars] == [True, False, True, True]
    assert all(len(row.ours.samples_s) == 2 for row in record.rows)
    assert len(record.ablations) == len(run.ABLATIONS)
    assert record.rows[0].extra_bytes == {"ours": 5, "sdpa": 5}
    assert record.rows[2].extra_bytes == {"ours": 5}
    assert record.memory.extra_bytes == 5
    assert [row.reading is not None for row in record.rows] == [False, True, True]
    assert "blockwise" in record.rows[0].explanation
    assert [step.done for step in steps] == list(range(steps[0].total))


def test_what_is_read_beside_a_case_is_its_own_keys_and_values(tiny):
    record, _ = run_table(with_memory=False)
    dense, packed = record.rows[1:]
    assert dense.reading_bytes == dense.case.kv_bytes
    assert packed.reading_bytes == 2 * packed.case.kv_heads * packed.case.kv_len * 8


def test_every_ablation_computes_what_the_whole_does(tiny):
    for part in run.ABLATIONS:
        inputs = make_inputs(part.case)
        others, runner = part.prepare(inputs)
        whole = RUNNERS["ours"](part.case, inputs.query, *inputs.states[0])
        without = runner(part.case, others.query, *others.states[0])
        torch.testing.assert_close(without, whole)


def test_one_level_takes_tiles_of_few_queries(tiny, monkeypatch):
    taken = []
    backend = BACKENDS.choose(
        AttentionProblem(
            batch=1,
            q_len=24,
            kv_len=24,
            q_heads=2,
            kv_heads=2,
            head_dim=8,
            value_dim=8,
            dtype="bfloat16",
            device="cpu",
            causal=True,
            scale=1.0,
        )
    )
    forward = backend.forward
    monkeypatch.setattr(
        backend, "forward", lambda *given, plan: taken.append(plan) or forward(*given, plan=plan)
    )
    inputs, runner = run.ABLATIONS[0].prepare(make_inputs(PREFILL))
    runner(PREFILL, inputs.query, *inputs.states[0])
    assert [plan.q_tile for plan in taken] == [REGISTER_ROWS]


def test_without_memory_none_is_claimed(tiny):
    record, _ = run_table(with_memory=False)
    assert record.memory is None
    assert all(row.extra_bytes == {} for row in record.rows)


READ_BYTES = 2**20


def timing_of(*samples_s):
    return Timing(samples_s=samples_s, calls=1)


def row_of(case, ours_s, reading_s=None, **peers_s):
    return RowRecord(
        case=case,
        backend="native",
        explanation="",
        ours=timing_of(ours_s),
        peers={name: timing_of(s) for name, s in peers_s.items()},
        reading=None if reading_s is None else timing_of(reading_s),
        reading_bytes=READ_BYTES,
        ceiling=1.0,
        bars=(),
        extra_bytes={},
    )


def judged(row, contest):
    return run._judge(row, contest, CEILINGS)


def test_a_ratio_is_the_peers_time_over_ours():
    row = judged(row_of(PREFILL, 2.0, sdpa=5.0), TABLE[0])
    assert row.bars[0].measured == 2.5
    assert row.ceiling == 4e9  # the faster product for bf16
    # at the ceiling ours would take flops / 4e9 seconds
    assert row.bars[0].at_ceiling == pytest.approx(5.0 / (PREFILL.flops / 4e9))


def test_a_share_of_the_bandwidth_is_bytes_over_time_over_bandwidth():
    contest = replace(TABLE[1], bars=TABLE[1].bars[1:])
    read_s = READ_BYTES / 2e9  # in turns with ours, it was twice what it was before
    row = judged(row_of(DECODE, DECODE.kv_bytes / 1.6e9, read_s), contest)
    assert row.ceiling == pytest.approx(2e9)
    assert row.bars[0].measured == pytest.approx(0.8)
    assert row.bars[0].at_ceiling == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("share", "counted"), [(0.9, 0.75), (0.5, 0.5)], ids=["faster than the cap", "slower"]
)
def test_a_capped_peer_counts_as_no_faster_than_its_cap(share, counted):
    bar = Bar(against="our bf16", at_least=1.0, capped=0.75)
    contest = Contest(case=PACKED, peers={"our bf16": DECODE}, bars=(bar,))
    read_s = READ_BYTES / 2e9
    row = row_of(PACKED, 1.0, read_s, **{"our bf16": DECODE.kv_bytes / (share * 2e9)})
    found = judged(row, contest).bars[0].measured
    assert found == pytest.approx(DECODE.kv_bytes / (counted * 2e9))


def test_ceilings_measured_twice_are_the_higher_ones():
    other = replace(CEILINGS, products={k: dict(v) for k, v in CEILINGS.products.items()}, read=9e9)
    other.products["wide"]["fma_fp32"] = 1.0
    higher = run._higher(CEILINGS, other)
    assert higher.read == 9e9
    assert higher.products == CEILINGS.products


@pytest.mark.parametrize("name", ["sdpa", "enable_gqa", "folded"])
def test_every_way_of_torchs_computes_what_ours_does(name):
    case = replace(DECODE, kv_heads=4) if name == "sdpa" else replace(DECODE, q_len=3)
    inputs = make_inputs(case)
    ours, theirs = (RUNNERS[n](case, inputs.query, *inputs.states[0]) for n in ("ours", name))
    torch.testing.assert_close(theirs, ours)


def test_what_is_wrong_is_not_timed(tiny, monkeypatch):
    wrong = {**RUNNERS, "sdpa": lambda _, query, *__: query}
    monkeypatch.setattr(run, "RUNNERS", wrong)
    monkeypatch.setattr(run, "interleave", lambda *_: pytest.fail("was timed"))
    with pytest.raises(BackendError, match=r"ours and sdpa differ by .* nothing was timed"):
        run_table()
    monkeypatch.setitem(wrong, "sdpa", lambda _, query, *__: query * float("nan"))
    with pytest.raises(BackendError, match="differ by nan"):
        run_table()


def test_the_digest_is_that_of_the_code(monkeypatch, tmp_path):
    (tmp_path / "attention").mkdir()
    code = tmp_path / "attention" / "api.py"
    code.write_text("one")
    monkeypatch.setattr(run.tesseral, "__file__", str(tmp_path / "__init__.py"))
    first = run._digest()
    assert run._digest() == first
    code.write_text("two")
    assert run._digest() != first


def test_a_library_joins_where_it_is_installed(tiny, monkeypatch):
    def prepare(case, inputs):
        return make_call(RUNNERS["folded" if case == DECODE else "sdpa"], case, inputs)

    known = {
        "there": others.Other(module="numpy", prepare=prepare),
        "not there": others.Other(module="no_such_library", prepare=prepare),
    }
    monkeypatch.setattr(others, "OTHERS", known)
    record, _ = run_table()
    names = [set(row.peers) - set(RUNNERS) for row in record.rows]
    assert names == [{"there"}, {"there"}, set()]  # it reads no packed keys
    assert set(record.rows[0].extra_bytes) == {"ours", "sdpa"}


@pytest.mark.parametrize("case", [PREFILL, DECODE], ids=["prefill", "decode"])
def test_jax_computes_what_ours_does(case):
    pytest.importorskip("jax")
    inputs = make_inputs(case)
    theirs = others.OTHERS["jax"].prepare(case, inputs)()
    ours = RUNNERS["ours"](case, inputs.query, *inputs.states[0])
    run.check_agreement(case, {"ours": ours, "jax": theirs})


def test_the_grid_measures_what_it_has_not_and_saves_after_each_shape(tiny):
    saved = []
    record = run.start_record(run.QUICK, 1)
    shapes = tuple(cases.grid())
    first = grid.run_grid(record, shapes[:1], lambda _: None, saved.append)
    whole = grid.run_grid(first, shapes, lambda _: None, saved.append)
    assert [len(record.shapes) for record in saved] == [1, 2]
    assert whole.shapes[0] is first.shapes[0]
    assert [shape.case for shape in whole.shapes] == list(shapes)
    assert whole.shapes[0].peer == "sdpa"
    assert whole.shapes[1].peer in ("enable_gqa", "folded")


def test_a_shape_counts_as_slower_only_when_it_is_so_again(tiny, monkeypatch):
    asked = []

    def timed(pair, method, *, seconds):
        asked.append(method.repeats)
        ours = slow.pop(0)
        return {
            name: Timing(samples_s=(ours if name == "ours" else 1.0,), calls=1) for name in pair
        }

    monkeypatch.setattr(grid, "interleave", timed)
    slow = [2.0, 0.5]
    shape = grid.measure_shape(PREFILL, run.QUICK)
    assert (shape.again, shape.slower, shape.ratio) == (True, False, 2.0)
    slow = [2.0, 1.5]
    assert grid.measure_shape(PREFILL, run.QUICK).slower
    slow = [1.02]
    shape = grid.measure_shape(PREFILL, run.QUICK)
    assert (shape.again, shape.slower) == (False, False)
    assert asked == [2, 6, 2, 6, 2]


def test_memory_of_a_call_is_measured_in_a_process_of_its_own():
    found = memory.measure_memory([("ours", PREFILL), ("sdpa", PREFILL)], threads=1)
    assert len(found) == 2
    assert all(size is None or 0 <= size < 2**27 for size in found)


def test_the_benchmark_needs_no_transformers():
    code = (
        "import sys, tesseral.bench.attention.run, tesseral.bench.attention.grid;"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
