"""Measured and published figures that the machine model stands beside, each with its source."""

from dataclasses import dataclass, replace

from tesseral.attention.backends.cuda.backend import CudaPlan
from tesseral.attention.backends.cuda.chips import VOLTA
from tesseral.attention.backends.triton.backend import TritonPlan
from tesseral.attention.backends.triton.tuning import TileConfig
from tesseral.attention.model import GpuTiles, Machine, Prediction, gpu_tiles, machine, predict_gpu
from tesseral.attention.model import predict_standard as standard
from tesseral.attention.problem import AttentionProblem

TERA = 1e12
TOKENS = 16384
"""Tokens of a case, in sequences of its length."""

PEAK = 989
"""Published TFLOP/s of an H200."""

RATES = {"m16n8k16": 598.0, "m16n8k8": 775.0}
"""TFLOP/s of the instructions of kernels for 8.0 and 7.5 on one H200. Measured."""

EFFICIENT_80 = GpuTiles(
    rows=64,
    keys=128,
    warps=8,
    strip=32,
    columns=4,
    resident=2,
    through_registers=True,
    weights_near=True,
    reread=True,
)
"""torch's memory-efficient kernel for 8.0 at 128 columns: warps of 32 x 32, 16 on a multiprocessor,
weights through shared memory, queries read anew with every tile. As its source says."""

EFFICIENT_70 = replace(EFFICIENT_80, rows=32, warps=4, resident=3)
"""The same for 7.0: 12 warps on a multiprocessor."""

PUBLISHED_70 = GpuTiles(rows=64, keys=32, warps=8, strip=16, columns=2, through_registers=True)
"""A published kernel for V100 at 256 columns: 64 x 32, 8 warps, one program a multiprocessor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A measured figure and what the model says of it.

    Attributes
    ----------
    case, of : str
        What was run, and by which kernel.
    measured, predicted : float
        TFLOP/s, or microseconds of decoding.
    unit : str
        Which of the two.
    busiest : str
        The unit that bounds the prediction.
    """

    case: str
    of: str
    measured: float
    predicted: float
    unit: str
    busiest: str

    @property
    def error(self) -> float:
        """How much faster the prediction is than what was measured, as a share."""
        if self.unit == "us":
            return self.measured / self.predicted - 1
        return self.predicted / self.measured - 1


def problem(
    length: int, *, causal: bool, width: int = 128, device: str = "cuda:0"
) -> AttentionProblem:
    """Return a call of 16 heads on 16,384 tokens in float16."""
    return AttentionProblem(
        batch=TOKENS // length,
        q_len=length,
        kv_len=length,
        q_heads=16,
        kv_heads=16,
        head_dim=width,
        value_dim=width,
        dtype="float16",
        device=device,
        causal=causal,
        scale=width**-0.5,
    )


def decoding(length: int, device: str = "cuda:0") -> AttentionProblem:
    """Return one token of 32 query heads on 8 key heads."""
    return replace(
        problem(TOKENS, causal=False, device=device),
        batch=1,
        q_len=1,
        kv_len=length,
        q_heads=32,
        kv_heads=8,
    )


NARROW = TileConfig(q_tile=64, k_tile=64, warps=4, stages=3, describe=True)
WIDE = TileConfig(q_tile=128, k_tile=64, warps=8, stages=3, describe=True)
ROWS = TileConfig(q_tile=16, k_tile=64, warps=4, stages=2, waves=4)

MEASURED = (
    (2048, False, NARROW, 504.0),
    (2048, True, NARROW, 420.0),
    (4096, False, NARROW, 525.0),
    (4096, True, NARROW, 466.0),
    (8192, False, NARROW, 536.0),
    (8192, True, NARROW, 491.0),
    (16384, False, WIDE, 482.0),
    (16384, True, WIDE, 429.0),
)
"""Length, causality, tiles and TFLOP/s of our Triton kernel on one H200, 2026-11-22."""

MEASURED_DECODING = ((131072, 66, 130.0), (8192, 64, 16.2))
"""Keys, programs that share them and microseconds with a cold cache, the same day."""

MEASURED_TURING = (
    (4096, False, 8, 64, 1, 188.0),
    (4096, True, 8, 64, 1, 165.0),
    (4096, False, 8, 128, 1, 212.0),
    (4096, True, 8, 128, 1, 186.0),
    (4096, False, 4, 64, 2, 195.0),
    (4096, True, 4, 64, 2, 176.0),
)
"""Length, causality, warps of 16 rows, keys, programs on a multiprocessor and TFLOP/s: a kernel in
CUDA C++ with Turing's instruction, without asynchronous copies, on one H200, 2026-11-29."""

MEASURED_STANDARD = (8192, 88.0)
MEASURED_EFFICIENT = ((4096, False, 173.0), (4096, True, 162.0), (8192, False, 171.0))
"""TFLOP/s of unfused and of torch's memory-efficient attention, the same day."""


def plan_of(config: TileConfig, splits: int = 1) -> TritonPlan:
    """Return the plan of the ``triton`` backend with some tiles."""
    return TritonPlan(
        batch_tile=1,
        head_tile=1,
        q_tile=config.q_tile,
        k_tile=config.k_tile,
        workspace_bytes=0,
        kernel="rows" if config == ROWS else "tiles",
        config=config,
        splits=splits,
    )


def volta_plan(call: AttentionProblem) -> CudaPlan:
    """Return the plan of the ``volta`` backend for a call that fills a V100."""
    tiles = VOLTA.tiles(call)
    return CudaPlan(
        batch_tile=1,
        head_tile=1,
        q_tile=tiles.rows,
        k_tile=tiles.keys,
        workspace_bytes=0,
        tiles=tiles,
        splits=1,
    )


def checks() -> list[Check]:
    """Return all that was measured on the H200 beside the model."""
    chip = machine("h200")
    found = []
    for length, causal, config, measured in MEASURED:
        call = problem(length, causal=causal)
        got = predict_gpu(call, gpu_tiles(plan_of(config), call), chip)
        of = f"triton, {config.q_tile} x {config.k_tile}"
        found.append(_check(_name(length, causal), of, measured, got))
    for length, splits, measured in MEASURED_DECODING:
        call = decoding(length)
        got = predict_gpu(call, gpu_tiles(plan_of(ROWS, splits), call), chip)
        found.append(
            Check(
                case=f"decode {length}",
                of=f"triton, {splits} parts",
                measured=measured,
                predicted=1e6 * got.seconds,
                unit="us",
                busiest=got.busiest,
            )
        )
    return found


def checks_of_others() -> list[Check]:
    """Return the same of other ways to compute attention, and of instructions of older chips."""
    chip = machine("h200")
    length, measured = MEASURED_STANDARD
    got = standard(problem(length, causal=False), chip)
    found = [_check(_name(length, False), "unfused", measured, got)]
    for length, causal, measured in MEASURED_EFFICIENT:
        got = predict_gpu(problem(length, causal=causal), EFFICIENT_80, _slower("m16n8k16"))
        found.append(_check(_name(length, causal), "memory-efficient", measured, got))
    for length, causal, warps, keys, resident, measured in MEASURED_TURING:
        tiles = GpuTiles(
            rows=16 * warps,
            keys=keys,
            warps=warps,
            strip=16,
            resident=resident,
            through_registers=True,
        )
        got = predict_gpu(problem(length, causal=causal), tiles, _slower("m16n8k8"))
        of = f"m16n8k8, {resident} of {16 * warps} x {keys}"
        found.append(_check(_name(length, causal), of, measured, got))
    return found


def _slower(instruction: str) -> Machine:
    """Return an H200 that multiplies with an instruction of older chips."""
    chip = machine("h200")
    return replace(chip, matrix_flops=4096 * RATES[instruction] / PEAK)


def _check(case: str, of: str, measured: float, got: Prediction) -> Check:
    return Check(
        case=case,
        of=of,
        measured=measured,
        predicted=got.rate / TERA,
        unit="TFLOP/s",
        busiest=got.busiest,
    )


def _name(length: int, causal: bool) -> str:
    return f"{length} {'causal' if causal else 'full'}"
