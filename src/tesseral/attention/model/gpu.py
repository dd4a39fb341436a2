"""What a multiprocessor does: programs of warps that share its units."""

from tesseral.attention.model.machine import Machine
from tesseral.attention.model.simulator import Operation
from tesseral.attention.model.tiles import HALF, GpuTiles
from tesseral.attention.model.visits import Visits, fullest_core, visits
from tesseral.attention.problem import AttentionProblem

SCORE_LANES = 4.5
"""Instructions a score: multiply-add, maximum, exponential, sum, and half of a conversion."""

MASK_LANES = 6.7
"""Instructions more a score where its place is compared. Counted in the compiled kernel."""

WARP_LANES = 131 * 32
"""Instructions more a warp and tile: loops, barriers, addresses. Counted as the last."""


def gpu_operations(
    problem: AttentionProblem, tiles: GpuTiles, machine: Machine, *, tiling_mask: bool = True
) -> list[Operation]:
    """Return what the multiprocessor that ends last does in a call.

    Each program walks its tiles of keys in order: a product with the keys, weights, a product
    with the values. Programs that share a multiprocessor fill each other's waits.
    """
    heads, length, readers = problem.q_heads, problem.q_len, problem.group
    if tiles.folded:
        heads, length, readers = problem.kv_heads, 1, 1
    found = visits(problem, min(tiles.rows, length), tiles.keys, tiling_mask=tiling_mask)
    if problem.causal:
        found.reverse()
    parts = [
        Visits(-(-each.full // tiles.parts), -(-each.masked // tiles.parts))
        for each in found
        for _ in range(tiles.parts)
    ]
    tasks = parts * (heads * problem.batch)
    multiprocessor = _Multiprocessor(problem, tiles, machine, readers * len(found), tiling_mask)
    costs = [each.total + 1 for each in tasks]
    for slot in fullest_core(costs, machine.cores, tiles.resident):
        last: int | None = None
        for task in slot:
            last = multiprocessor.add_program(tasks[task], last)
    return multiprocessor.operations


class _Multiprocessor:
    """The operations of the programs of one multiprocessor."""

    def __init__(
        self,
        problem: AttentionProblem,
        tiles: GpuTiles,
        machine: Machine,
        readers: int,
        tiling_mask: bool,
    ) -> None:
        self.tiles, self.machine = tiles, machine
        self.d, self.dv = problem.head_dim, problem.value_dim
        self.operations: list[Operation] = []
        self.read = self._read(readers)
        self.scores = self._scores()
        self.values = self._values()
        self.plain = self._weights(masked=False, dense=False)
        self.masked = self._weights(masked=True, dense=not tiling_mask)

    def add_program(self, visited: Visits, last: int | None) -> int:
        """Append a program after operation ``last``; return the number of its own last."""
        rows, wait, stages = self.tiles.rows, self.machine.handover_s, self.tiles.stages
        before = {} if last is None else {last: 0.0}
        begin = self._add("queries", self.machine.seconds(far=HALF * rows * self.d), before)
        weights: int | None = None
        products: list[int] = []
        for i in range(visited.total):
            freed = products[i - stages] if i >= stages else begin
            read = self._add("read", self.read, {freed: 0.0})
            before = {} if weights is None else {weights: 0.0}
            scores = self._product("scores", self.scores, {read: wait, **before})
            before = {products[-1]: 0.0} if products else {}
            seconds = self.masked if i >= visited.full else self.plain
            weights = self._add("weights", seconds, {scores: wait, **before})
            products.append(self._product("values", self.values, {weights: wait}))
        work = self.machine.seconds(far=HALF * rows * self.dv, lanes=2 * rows * self.dv)
        return self._add("output", work, {products[-1]: wait} if products else {begin: 0.0})

    def _add(self, name: str, seconds: dict[str, float], after: dict[int, float]) -> int:
        self.operations.append(Operation(name=name, seconds=seconds, after=after))
        return len(self.operations) - 1

    def _product(self, name: str, seconds: dict[str, float], after: dict[int, float]) -> int:
        """Append a product, after its operands where they go through registers."""
        if not self.tiles.through_registers:
            return self._add(name, seconds, after)
        near = {unit: s for unit, s in seconds.items() if unit == "near"}
        rest = {unit: s for unit, s in seconds.items() if unit != "near"}
        return self._add(name, rest, {self._add("operands", near, after): 0.0})

    def _read(self, readers: int) -> dict[str, float]:
        """Return the cost of a tile of keys and values, far ones for one of their readers."""
        tile = HALF * self.tiles.keys * (self.d + self.dv)
        moved = tile + (HALF * self.tiles.rows * self.d if self.tiles.reread else 0)
        return self.machine.seconds(near=moved, l2=moved, far=tile / readers)

    def _scores(self) -> dict[str, float]:
        tiles = self.tiles
        strip = tiles.columns * min(tiles.rows, tiles.strip) * self.d + tiles.keys * self.d
        flops = 2 * tiles.rows * tiles.keys * self.d
        return self.machine.seconds(flops=flops, near=HALF * self._strips * strip)

    def _values(self) -> dict[str, float]:
        tiles = self.tiles
        strip = tiles.keys * self.dv
        if tiles.weights_near:
            strip += tiles.columns * tiles.strip * tiles.keys
        flops = 2 * tiles.rows * tiles.keys * self.dv
        return self.machine.seconds(flops=flops, near=HALF * self._strips * strip)

    def _weights(self, *, masked: bool, dense: bool) -> dict[str, float]:
        """Return the cost of a tile's weights; a dense mask is read, a byte a score."""
        tiles = self.tiles
        pairs = tiles.rows * tiles.keys
        lanes = pairs * (SCORE_LANES + (MASK_LANES if masked else 0))
        lanes += tiles.rows * self.dv + WARP_LANES * tiles.warps
        return self.machine.seconds(
            lanes=lanes,
            exps=pairs,
            near=HALF * pairs if tiles.weights_near else 0,
            l2=pairs if masked and dense else 0,
        )

    @property
    def _strips(self) -> int:
        return max(1, self.tiles.rows // self.tiles.strip)
