"""What a cube core and its vector cores do, round by round, as the kernels of ``ascend`` do it."""

import dataclasses

from tesseral.attention.backends.ascend.plan import AscendPlan, padded
from tesseral.attention.mask import make_band
from tesseral.attention.model.machine import Machine
from tesseral.attention.model.simulator import Operation
from tesseral.attention.model.visits import fullest_core
from tesseral.attention.problem import AttentionProblem

SCORE_LANES = 6
"""Instructions a score: scale, maximum, difference, exponential, sum, conversion."""

MASK_LANES = 2
"""Instructions more a score where a mask is read: its conversion, a selection."""


def one_level(plan: AscendPlan) -> AscendPlan:
    """Return the plan in which a round is a basic block and nothing is issued ahead."""
    return dataclasses.replace(plan, k_tile=plan.basic, vector_rows=min(64, plan.q_tile), ahead=0)


def npu_operations(
    problem: AttentionProblem, plan: AscendPlan, machine: Machine, *, tiling_mask: bool = True
) -> list[Operation]:
    """Return what the core that ends last does in a call.

    Matrix and vector units each take their operations in the order of the kernel. A round waits
    for the buffers that an earlier one has read: ``ahead + 1`` of scores, two of weights and
    of products.
    """
    tasks = _tasks(problem, plan, tiling_mask=tiling_mask)
    (mine,) = fullest_core([1 + len(rounds) for rounds in tasks], plan.programs, 1)
    program = _Program(problem, plan, machine, tiling_mask=tiling_mask)
    for task in mine:
        program.add_tile(tasks[task])
    return program.operations


Round = tuple[int, bool]
"""Keys that are multiplied, and whether a mask is read."""


def _tasks(problem: AttentionProblem, plan: AscendPlan, *, tiling_mask: bool) -> list[list[Round]]:
    """Return the rounds of every task, in the order in which they are handed out."""
    rows = problem.group if plan.folded else problem.q_len
    heads = (problem.kv_heads if plan.folded else problem.q_heads) * problem.batch
    band = make_band(problem.q_len, problem.kv_len, is_causal=problem.causal, window=problem.window)
    part = -(-problem.kv_len // plan.parts)
    found = []
    for start in range(0, rows, plan.q_tile):
        last = min(start + plan.q_tile, rows) - 1
        for first in range(0, problem.kv_len, part):
            low, high = first, min(first + part, problem.kv_len)
            full_low, full_high = low, high
            if plan.folded:
                pass  # one query: what it sees was cut out beforehand
            elif not tiling_mask:
                if problem.causal or problem.window:
                    full_high = full_low
            else:
                if band.lower is not None:
                    low = max(low, (start + band.lower) // plan.basic * plan.basic)
                    full_low = max(full_low, last + band.lower)
                if band.upper is not None:
                    high = min(high, last + band.upper + 1)
                    full_high = min(full_high, start + band.upper + 1)
            found.append(
                [
                    (
                        -(-min(plan.k_tile, high - at) // plan.basic) * plan.basic,
                        not (at >= full_low and at + plan.k_tile <= full_high),
                    )
                    for at in range(low, high, plan.k_tile)
                ]
            )
    if problem.causal:
        found.reverse()
    return [rounds for rounds in found for _ in range(heads)]


class _Program:
    """The operations of one core, tile after tile."""

    def __init__(
        self, problem: AttentionProblem, plan: AscendPlan, machine: Machine, *, tiling_mask: bool
    ) -> None:
        self.plan, self.machine = plan, machine
        self.size = 4 if problem.dtype == "float32" else 2
        self.mask_bytes = 1 if tiling_mask else self.size
        self.d, self.dv = padded(problem.head_dim), padded(problem.value_dim)
        tiles = 1 if plan.folded else problem.group * -(-problem.q_len // plan.q_tile)
        self.far_share = 1 / tiles  # keys and values are read from far for one of their readers
        self.operations: list[Operation] = []
        self.last: dict[str, int] = {}
        self.done: dict[str, list[int]] = {"scores": [], "weights": [], "values": [], "sums": []}

    def add_tile(self, rounds: list[Round]) -> None:
        """Append the operations of a tile in the order of the kernel."""
        plan, rows = self.plan, self.plan.q_tile
        self._add("cube", "queries", [], far=self.size * rows * self.d)
        self._add("vector", "begin", [], l2=4 * rows * self.dv)
        offset = len(self.done["scores"])
        for keys, _ in rounds[: plan.ahead]:
            self._scores(keys)
        for i, (keys, masked) in enumerate(rounds):
            if i + plan.ahead < len(rounds):
                self._scores(rounds[i + plan.ahead][0])
            self._weights(offset + i, masked=masked)
            self._values(offset + i, keys)
            if i > 0:
                self._sums(offset + i - 1)
        if rounds:
            self._sums(offset + len(rounds) - 1)
        ends = {"l2": 4 * rows * self.dv, "far": self.size * rows * self.dv}
        self._add("vector", "output", [], lanes=2 * rows * self.dv, **ends)

    def _scores(self, keys: int) -> None:
        rows, read = self.plan.q_tile, self.size * keys * self.d
        number = len(self.done["scores"])
        free = self._earlier("weights", number - self.plan.ahead - 1)
        work = {"flops": 2 * rows * keys * self.d, "l2": read + 4 * rows * keys}
        self._add("cube", "scores", free, far=read * self.far_share, **work)

    def _weights(self, number: int, *, masked: bool) -> None:
        pairs = self.plan.q_tile * self.plan.k_tile
        needs = [self.done["scores"][number], *self._earlier("values", number - 2)]
        mask = self.mask_bytes * pairs if masked else 0
        lanes = pairs * (SCORE_LANES + (MASK_LANES if masked else 0))
        far = mask if self.mask_bytes > 1 else 0
        self._add(
            "vector", "weights", needs, lanes=lanes, l2=pairs * (4 + self.size) + mask, far=far
        )

    def _values(self, number: int, keys: int) -> None:
        rows, read = self.plan.q_tile, self.size * keys * self.dv
        needs = [self.done["weights"][number], *self._earlier("sums", number - 2)]
        work = {"flops": 2 * rows * keys * self.dv}
        work["l2"] = read + self.size * rows * keys + 4 * rows * self.dv
        self._add("cube", "values", needs, far=read * self.far_share, **work)

    def _sums(self, number: int) -> None:
        numbers = self.plan.q_tile * self.dv
        self._add(
            "vector", "sums", [self.done["values"][number]], lanes=2 * numbers, l2=12 * numbers
        )

    def _earlier(self, kind: str, number: int) -> list[int]:
        return [self.done[kind][number]] if number >= 0 else []

    def _add(self, engine: str, name: str, needs: list[int], **work: float) -> None:
        """Append an operation after the last of its engine and, a handover later, its needs."""
        after = dict.fromkeys(needs, self.machine.handover_s)
        if engine in self.last:
            after.setdefault(self.last[engine], 0.0)
        self.last[engine] = len(self.operations)
        if name in self.done:
            self.done[name].append(len(self.operations))
        seconds = self.machine.seconds(**work)
        self.operations.append(Operation(name=name, seconds=seconds, after=after))
