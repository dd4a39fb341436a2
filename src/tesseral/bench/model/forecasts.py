"""What the model predicts for machines that nobody here has, beside what others published."""

from dataclasses import dataclass, replace

from tesseral.attention.backends.ascend.chip import ASCEND_910B2
from tesseral.attention.backends.ascend.plan import AscendPlan, plan_rounds
from tesseral.attention.model import (
    Machine,
    Prediction,
    gpu_tiles,
    machine,
    one_level,
    predict_gpu,
    predict_npu,
    predict_standard,
)
from tesseral.attention.problem import AttentionProblem
from tesseral.bench.model.cases import (
    EFFICIENT_70,
    PUBLISHED_70,
    TERA,
    decoding,
    problem,
    volta_plan,
)

LENGTHS = (2048, 4096, 8192, 16384)
HANDOVERS = (0.5, 1.0, 2.0)
"""Factors on the assumed time between cube and vector cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NpuForecast:
    """Predictions of one call on the Ascend chip.

    Attributes
    ----------
    case : str
        The call.
    two_level, one_level, unskipped, standard : Prediction
        Our plan; rounds of one basic block; our plan with a whole mask that is read everywhere;
        attention with scores in far memory.
    """

    case: str
    two_level: Prediction
    one_level: Prediction
    unskipped: Prediction
    standard: Prediction

    def over(self, other: str) -> float:
        """Return how much faster our plan is than one of the others."""
        theirs: Prediction = getattr(self, other)
        return theirs.seconds / self.two_level.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A prediction beside a published figure, both in the unit that is named."""

    what: str
    unit: str
    predicted: float
    published: float
    source: str


def npu_plan(call: AttentionProblem) -> AscendPlan:
    """Return the plan of the ``ascend`` backend."""
    return plan_rounds(call, ASCEND_910B2, ASCEND_910B2.cube_cores)


def npu_forecast(length: int, *, causal: bool, chip: Machine) -> NpuForecast:
    """Return what is predicted of a prefill."""
    call = problem(length, causal=causal, device="npu:0")
    plan = npu_plan(call)
    return NpuForecast(
        case=f"{length} {'causal' if causal else 'full'}",
        two_level=predict_npu(call, plan, chip),
        one_level=predict_npu(call, one_level(plan), chip),
        unskipped=predict_npu(call, plan, chip, tiling_mask=False),
        standard=predict_standard(call, chip),
    )


def npu_forecasts() -> list[NpuForecast]:
    """Return what is predicted for the Ascend 910B2."""
    chip = machine("ascend-910b2")
    causal = [npu_forecast(length, causal=True, chip=chip) for length in LENGTHS]
    return [*causal, npu_forecast(LENGTHS[-1], causal=False, chip=chip)]


def handover_range(length: int) -> list[tuple[float, NpuForecast]]:
    """Return what becomes of a prediction if the assumed handover takes another time."""
    chip = machine("ascend-910b2")
    machines = [replace(chip, handover_s=chip.handover_s * factor) for factor in HANDOVERS]
    return [(m.handover_s, npu_forecast(length, causal=True, chip=m)) for m in machines]


def npu_decoding(length: int) -> tuple[float, float]:
    """Return the predicted seconds of decoding a token, and those of reading its keys and values.

    Grouped heads, 32 on 8.
    """
    call, chip = decoding(length, "npu:0"), machine("ascend-910b2")
    moved = 2 * call.kv_heads * call.kv_len * (call.head_dim + call.value_dim)
    got = predict_npu(call, npu_plan(call), chip)
    return got.seconds, moved / chip.far_bytes_per_s


def volta_forecasts() -> list[Forecast]:
    """Return what is predicted for the V100."""
    chip = machine("v100")
    wide = predict_gpu(problem(4096, causal=True, width=256), PUBLISHED_70, chip)
    call = problem(4096, causal=True)
    tiles = gpu_tiles(volta_plan(call), call)
    ours, theirs = (predict_gpu(call, each, chip) for each in (tiles, EFFICIENT_70))
    return [
        Forecast(
            what="4096 causal, width 256, tiles of 64 x 32",
            unit="TFLOP/s",
            predicted=wide.rate / TERA,
            published=46.6,
            source="the best published V100 kernel of these tiles",
        ),
        Forecast(
            what=f"4096 causal, width 128, our {tiles.rows} x {tiles.keys}, over memory-efficient",
            unit="x",
            predicted=theirs.seconds / ours.seconds,
            published=1.43,
            source="FastAttention over xformers",
        ),
    ]
