"""The machine model: laws that any schedule obeys, and cases worked out by hand."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from tesseral._errors import ParameterError
from tesseral.attention import TilingMask
from tesseral.attention.backends.ascend.chip import ASCEND_910B2
from tesseral.attention.backends.ascend.plan import plan_rounds
from tesseral.attention.backends.cuda.backend import CudaPlan
from tesseral.attention.backends.cuda.chips import VOLTA
from tesseral.attention.backends.triton.backend import TritonPlan
from tesseral.attention.backends.triton.tuning import TileConfig
from tesseral.attention.model import (
    MACHINES,
    GpuTiles,
    Machine,
    Operation,
    gpu_tiles,
    machine,
    one_level,
    predict_gpu,
    predict_npu,
    predict_standard,
    simulate,
)
from tesseral.attention.model.visits import fullest_core, visible_pairs, visits
from tesseral.attention.problem import AttentionProblem

PROBLEM = AttentionProblem(
    batch=1, q_len=1024, kv_len=1024, q_heads=4, kv_heads=4, head_dim=128, value_dim=128,
    dtype="float16", device="cuda:0", scale=0.1,
)  # fmt: skip
CALLS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window": (300, 100)},
    "grouped": {"kv_heads": 2, "causal": True},
    "uneven": {"q_len": 700, "kv_len": 1100, "causal": True},
}
every_call = pytest.mark.parametrize(
    "problem", [dataclasses.replace(PROBLEM, **c) for c in CALLS.values()], ids=CALLS.keys()
)
TILES = GpuTiles(rows=64, keys=64, warps=4, strip=64, resident=2, stages=3)
ROUNDS = plan_rounds(PROBLEM, ASCEND_910B2, ASCEND_910B2.cube_cores)
SECOND = Machine(
    name="of whole seconds", cores=1, clock_hz=1.0, matrix_flops=2.0**20, vector_lanes=2.0**15,
    exp_lanes=2.0**15, near_bytes=2.0**15, l2_bytes=2.0**15, far_bytes_per_s=2.0**15,
    handover_s=1.0, latency_s=3.0, launch_s=5.0, sources={},
)  # fmt: skip


def predictions(problem):
    """Return a prediction of each kind for a call."""
    npu, gpu = machine("ascend-910b2"), machine("h200")
    return [
        predict_npu(problem, ROUNDS, npu),
        predict_npu(problem, one_level(ROUNDS), npu),
        predict_npu(problem, ROUNDS, npu, tiling_mask=False),
        predict_gpu(problem, TILES, gpu),
        predict_gpu(problem, TILES, gpu, tiling_mask=False),
        predict_standard(problem, gpu),
    ]


def random_program(seed):
    rng = np.random.default_rng(seed)
    operations = []
    for number in range(80):
        units = rng.choice(["a", "b", "c"], rng.integers(1, 4), replace=False)
        earlier = rng.choice(number, min(number, rng.integers(0, 3)), replace=False)
        operations.append(
            Operation(
                name="x",
                seconds={unit: float(rng.random()) for unit in units},
                after={int(other): float(rng.random()) for other in earlier},
            )
        )
    return operations


def check_laws(timeline):
    """Check that nothing starts before what it needs ended, and no unit does two things at once."""
    taken = {}
    for number, operation in enumerate(timeline.operations):
        start = timeline.starts[number]
        assert timeline.ends[number] == start + max(operation.seconds.values(), default=0.0)
        for earlier, delay in operation.after.items():
            assert start >= timeline.ends[earlier] + delay
        for unit, seconds in operation.seconds.items():
            taken.setdefault(unit, []).append((start, start + seconds))
    for unit, spans in taken.items():
        for (_, end), (start, _) in pairwise(sorted(spans)):
            assert start >= end
        assert timeline.busy()[unit] == pytest.approx(sum(end - start for start, end in spans))
        assert timeline.seconds >= timeline.busy()[unit] * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_random_programs_obey_the_laws(seed):
    check_laws(simulate(random_program(seed)))


@every_call
def test_predicted_schedules_obey_the_laws(problem):
    for prediction in predictions(problem):
        check_laws(prediction.timeline)
        assert prediction.seconds > prediction.timeline.seconds


def test_small_programs_take_the_time_found_by_hand():
    load = Operation(name="load", seconds={"copy": 2.0})
    product = Operation(name="product", seconds={"matrix": 3.0, "copy": 1.0}, after={0: 0.5})
    other = Operation(name="load", seconds={"copy": 4.0})
    end = Operation(name="end", seconds={"vector": 1.0}, after={1: 0.5, 2: 0.0})
    timeline = simulate([load, product, other, end])
    # the second load is ready at 0, so it goes before the product, which the copy unit joins
    assert list(timeline.starts) == [0.0, 6.0, 2.0, 9.5]
    assert timeline.seconds == 10.5
    assert timeline.busy() == {"copy": 7.0, "matrix": 3.0, "vector": 1.0}
    assert simulate([]).seconds == 0.0


def test_one_round_takes_its_steps_one_after_another():
    problem = dataclasses.replace(
        PROBLEM, q_len=16, kv_len=16, q_heads=1, kv_heads=1, head_dim=16, value_dim=16
    )
    plan = dataclasses.replace(plan_rounds(problem, ASCEND_910B2, 1), k_tile=16, basic=16)
    assert plan.q_tile == 16
    got = predict_npu(problem, plan, SECOND)
    flops, unit = 2 * 16 * 16 * 16 / 2**20, 256 / 2**15  # a product; 256 lanes or bytes
    queries = 4 * unit  # the vector cores begin meanwhile, and hold the cache until then
    scores = max(flops, (2 + 4) * unit, 2 * unit)
    weights = (4 + 2) * unit
    values = (2 + 2 + 4) * unit
    sums = 12 * unit
    output = 4 * unit
    steps = queries + scores + weights + values + sums + output
    assert got.timeline.seconds == pytest.approx(steps + 3 * SECOND.handover_s)
    assert got.seconds == pytest.approx(got.timeline.seconds + 5.0 + 3.0)


def test_one_tile_of_a_gpu_takes_its_steps_one_after_another():
    problem = dataclasses.replace(PROBLEM, q_len=64, kv_len=64, q_heads=1, kv_heads=1)
    got = predict_gpu(problem, dataclasses.replace(TILES, stages=1, resident=1), SECOND)
    wide = 64 * 128 / 2**15  # seconds for a byte or an instruction a number
    pairs = 64 * 64 / 2**15
    product = 2 * 64 * 64 * 128 / 2**20
    weights = 4.5 * pairs + wide + 131 * 32 * 4 / 2**15
    steps = 2 * wide + 2 * 2 * wide + max(product, 4 * wide) + weights + max(product, 2 * wide)
    assert got.timeline.seconds == pytest.approx(steps + 2 * wide + 4 * SECOND.handover_s)
    assert got.flops == 4 * 64 * 64 * 128


@every_call
def test_the_work_is_what_the_plan_counts(problem):
    alone = dataclasses.replace(machine("h200"), cores=1)
    mask = TilingMask(
        problem.q_len, problem.kv_len, is_causal=problem.causal, window=problem.window
    )
    for rows, keys, got in (
        (64, 64, predict_gpu(problem, dataclasses.replace(TILES, resident=1), alone)),
        (
            ROUNDS.q_tile,
            ROUNDS.basic,
            predict_npu(problem, dataclasses.replace(ROUNDS, programs=1), alone),
        ),
    ):
        count = mask.count(rows, keys)
        flops = 4 * rows * keys * 128 * (count.full + count.partial) * problem.q_heads
        assert got.timeline.busy()["matrix"] == pytest.approx(flops / alone.peak_flops)
        assert got.flops <= flops
    assert visible_pairs(problem) == int(mask_as_matrix(mask).sum())


@every_call
def test_masks_are_paid_for_in_partial_tiles_only(problem):
    alone = dataclasses.replace(machine("h200"), cores=1)
    mask = TilingMask(
        problem.q_len, problem.kv_len, is_causal=problem.causal, window=problem.window
    )
    count, pairs = mask.count(64, 64), 64 * 64
    tiles = (count.full + count.partial) * (4.5 * pairs + 64 * 128 + 131 * 32 * 4)
    ends = -(-problem.q_len // 64) * 2 * 64 * 128
    lanes = problem.q_heads * (tiles + count.partial * 6.7 * pairs + ends)
    got = predict_gpu(problem, dataclasses.replace(TILES, resident=1), alone)
    assert got.timeline.busy()["vector"] == pytest.approx(lanes / (alone.clock_hz * 128))


def mask_as_matrix(mask):
    whole = TilingMask(
        mask.q_len, mask.kv_len, is_causal=mask.is_causal, window=mask.window, block=2048
    )
    return whole.block_mask(0, mask.q_len, 0, mask.kv_len)


@every_call
def test_no_prediction_beats_the_peak_or_the_memory(problem):
    numbers = problem.q_heads * problem.q_len + problem.kv_heads * problem.kv_len
    for name, got in (
        ("ascend-910b2", predict_npu(problem, ROUNDS, machine("ascend-910b2"))),
        ("h200", predict_gpu(problem, TILES, machine("h200"))),
    ):
        chip = machine(name)
        assert got.rate < chip.peak_flops
        assert got.seconds > 2 * 256 * numbers / chip.far_bytes_per_s * (0.9 / 2)
        assert got.busiest in got.timeline.busy()


@pytest.mark.parametrize("name", ["h200", "ascend-910b2"])
@pytest.mark.parametrize(
    "rate", ["matrix_flops", "vector_lanes", "l2_bytes", "far_bytes_per_s", "near_bytes"]
)
def test_a_faster_unit_slows_nothing_down(name, rate):
    chip, causal = machine(name), dataclasses.replace(PROBLEM, causal=True)
    faster = dataclasses.replace(chip, **{rate: 2 * getattr(chip, rate)})
    predict, plan = (predict_gpu, TILES) if name == "h200" else (predict_npu, ROUNDS)
    assert predict(causal, plan, faster).seconds <= predict(causal, plan, chip).seconds * (1 + 1e-9)
    assert predict_standard(causal, faster).seconds <= predict_standard(causal, chip).seconds


def test_time_grows_with_length_and_shrinks_with_what_is_skipped():
    npu, gpu = machine("ascend-910b2"), machine("h200")
    times = []
    for length in (2048, 3000, 4096):
        problem = dataclasses.replace(PROBLEM, q_len=length, kv_len=length, causal=True)
        plan = plan_rounds(problem, ASCEND_910B2, 24)
        two, one, unskipped = (
            predict_npu(problem, plan, npu),
            predict_npu(problem, one_level(plan), npu),
            predict_npu(problem, plan, npu, tiling_mask=False),
        )
        assert two.seconds < one.seconds
        assert two.seconds < unskipped.seconds
        skipped, all_tiles = (
            predict_gpu(problem, TILES, gpu, tiling_mask=mask).seconds for mask in (True, False)
        )
        assert skipped < all_tiles
        times.append((two.seconds, one.seconds, unskipped.seconds, skipped, all_tiles))
    for shorter, longer in pairwise(times):
        assert all(a < b for a, b in zip(shorter, longer, strict=True))


def test_without_a_rule_the_tiling_mask_changes_nothing():
    npu = machine("ascend-910b2")
    with_mask, without = (
        predict_npu(PROBLEM, ROUNDS, npu, tiling_mask=mask).seconds for mask in (True, False)
    )
    assert with_mask == without


def test_decoding_is_bound_by_far_memory():
    one = dataclasses.replace(PROBLEM, q_len=1, kv_len=131072, q_heads=32, kv_heads=8)
    bytes_read = 2 * 131072 * 8 * 256
    npu, gpu = machine("ascend-910b2"), machine("h200")
    config = TileConfig(q_tile=16, k_tile=64, warps=4, stages=2, waves=4)
    plan = TritonPlan(
        batch_tile=1, head_tile=1, q_tile=4, k_tile=64, workspace_bytes=0, kernel="rows",
        config=config, splits=66,
    )  # fmt: skip
    tiles = gpu_tiles(plan, one)
    assert (tiles.folded, tiles.parts, tiles.strip) == (True, 66, 16)
    for chip, got in (
        (npu, predict_npu(one, plan_rounds(one, ASCEND_910B2, 24), npu)),
        (gpu, predict_gpu(one, tiles, gpu)),
    ):
        assert got.busiest == "far"
        assert 1.0 < got.seconds * chip.far_bytes_per_s / bytes_read < 1.15


def test_tiles_of_a_plan_share_a_multiprocessor_as_memory_and_registers_let_them():
    for rows, warps, resident in ((64, 4, 2), (128, 8, 1)):
        config = TileConfig(q_tile=rows, k_tile=64, warps=warps, stages=3, describe=True)
        plan = TritonPlan(
            batch_tile=1, head_tile=1, q_tile=rows, k_tile=64, workspace_bytes=0, kernel="tiles",
            config=config, splits=1,
        )  # fmt: skip
        tiles = gpu_tiles(plan, PROBLEM)
        assert (tiles.rows, tiles.keys, tiles.resident) == (rows, 64, resident)


def test_tiles_in_cuda_are_those_of_their_plan():
    tiles = VOLTA.tiles(PROBLEM)
    plan = CudaPlan(
        batch_tile=1, head_tile=1, q_tile=tiles.rows, k_tile=tiles.keys, workspace_bytes=0,
        tiles=tiles, splits=2,
    )  # fmt: skip
    got = gpu_tiles(plan, PROBLEM)
    assert (got.rows, got.keys, got.resident) == (tiles.rows, tiles.keys, tiles.blocks)
    assert got.strip == 16 * tiles.squares
    assert got.parts == 2
    assert got.through_registers


def test_tasks_go_to_who_is_free():
    assert fullest_core([5, 1, 1, 1, 1], cores=2, slots=1) == [[0]]
    assert fullest_core([1, 1, 1], cores=2, slots=1) == [[0, 2]]
    assert fullest_core([1, 1, 1, 1], cores=2, slots=2) == [[0], [2]]


def test_visits_of_rows_without_keys_are_none():
    late = dataclasses.replace(PROBLEM, q_len=128, kv_len=64, causal=True)
    assert [each.total for each in visits(late, 64, 64, tiling_mask=True)] == [0, 1]


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_of_a_machine_has_a_source(name):
    chip = machine(name)
    numbers = {field.name for field in dataclasses.fields(chip)} - {"name", "sources"}
    assert set(chip.sources) == numbers
    assert all(chip.sources.values())


def test_the_ascend_machine_is_the_chip_that_plans_are_made_for():
    chip = machine("ascend-910b2")
    assert (chip.cores, chip.clock_hz) == (ASCEND_910B2.cube_cores, ASCEND_910B2.clock_hz)


def test_an_unknown_machine_is_refused_with_the_names_there_are():
    with pytest.raises(ParameterError, match="no machine 'abacus'; there are h200, v100, asc"):
        machine("abacus")
