"""Predicted times of whole calls."""

from dataclasses import dataclass, field

from tesseral.attention.backends.ascend.plan import AscendPlan
from tesseral.attention.model.gpu import gpu_operations
from tesseral.attention.model.machine import Machine
from tesseral.attention.model.npu import npu_operations
from tesseral.attention.model.simulator import Operation, Timeline, simulate
from tesseral.attention.model.tiles import GpuTiles
from tesseral.attention.model.visits import visible_pairs
from tesseral.attention.problem import AttentionProblem

SOFTMAX_LANES = 6
"""Instructions a score of a softmax of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of a call; nothing was run.

    Attributes
    ----------
    seconds : float
        Time of the whole call.
    flops : float
        Operations of the two products, of visible pairs only.
    timeline : Timeline
        Of the core that ends last.
    """

    seconds: float
    flops: float
    timeline: Timeline = field(repr=False)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.flops / self.seconds

    @property
    def busiest(self) -> str:
        """The unit that works longest, and so bounds the time."""
        busy = self.timeline.busy()
        return max(busy, key=lambda unit: busy[unit])


def predict_gpu(
    problem: AttentionProblem, tiles: GpuTiles, machine: Machine, *, tiling_mask: bool = True
) -> Prediction:
    """Predict a GPU kernel; parts of keys are merged by a second one."""
    timeline = simulate(gpu_operations(problem, tiles, machine, tiling_mask=tiling_mask))
    return _predicted(problem, machine, timeline, tiles.parts)


def predict_npu(
    problem: AttentionProblem, plan: AscendPlan, machine: Machine, *, tiling_mask: bool = True
) -> Prediction:
    """Predict the kernels of the ``ascend`` backend, with its plan or another of its kind."""
    timeline = simulate(npu_operations(problem, plan, machine, tiling_mask=tiling_mask))
    return _predicted(problem, machine, timeline, plan.parts)


def predict_standard(problem: AttentionProblem, machine: Machine) -> Prediction:
    """Predict attention written down plainly, with scores in far memory, in float16.

    One kernel for each step: product, scale, mask if a rule holds, softmax in float32, conversion,
    product. This is what ``eager`` attention does in transformers.
    """
    pairs = problem.q_len * problem.kv_len * problem.q_heads * problem.batch
    scores, values = (2.0 * pairs * width for width in (problem.head_dim, problem.value_dim))
    steps = [("scores", {"flops": scores, "far": 2.0 * pairs}), ("scale", {"far": 4.0 * pairs})]
    if problem.causal or problem.window:
        steps.append(("mask", {"far": 6.0 * pairs}))
    steps += [
        ("softmax", {"far": 6.0 * pairs, "lanes": SOFTMAX_LANES * pairs, "exps": 1.0 * pairs}),
        ("convert", {"far": 6.0 * pairs}),
        ("values", {"flops": values, "far": 2.0 * pairs}),
    ]
    operations = []
    for number, (name, work) in enumerate(steps):
        share = {kind: amount / machine.cores for kind, amount in work.items()}
        after = {number - 1: machine.launch_s} if number else {}
        operations.append(Operation(name=name, seconds=machine.seconds(**share), after=after))
    return _predicted(problem, machine, simulate(operations), 1)


def _predicted(
    problem: AttentionProblem, machine: Machine, timeline: Timeline, parts: int
) -> Prediction:
    heads = problem.q_heads * problem.batch
    seconds = machine.launch_s + machine.latency_s + timeline.seconds
    if parts > 1:
        moved = 4 * (parts + 1) * heads * problem.q_len * (problem.value_dim + 1)
        moved_s = moved / (machine.clock_hz * machine.l2_bytes)
        seconds += machine.launch_s + machine.latency_s + moved_s
    width = problem.head_dim + problem.value_dim
    flops = 2.0 * width * heads * visible_pairs(problem)
    return Prediction(seconds=seconds, flops=flops, timeline=timeline)
