"""Attention in Triton: two forward kernels and a backward pass."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tesseral.attention.backends.triton.tuning import Kernel, TileConfig, choose_tiles, count_splits
from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.sequences import Sequences
from tesseral.core._arrays import Array
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.triton import architecture, ready

if TYPE_CHECKING:
    from tesseral.attention.backward import Forward, Gradients

MAX_DIM = 256
"""Largest head dimension."""

MOST_ROWS = 32
"""Rows, query heads of a group counted, up to which they share one read of their keys."""

FORMATS = ("dense", "packed4", "packed8")
"""Keys and values that are read in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonPlan(TilePlan):
    """Tiles of the Triton kernels.

    Attributes
    ----------
    kernel : {"tiles", "rows"}
        Whether a program takes a tile of one head, or rows of all heads of a group.
    config : TileConfig
        How the kernel is cut and compiled.
    splits : int
        Programs that share the keys of one tile of rows.
    """

    kernel: Kernel
    config: TileConfig
    splits: int


class TritonBackend:
    """Exact attention on CUDA devices of compute capability 8.0 and later.

    Scores, weights and sums are float32 and the output is rounded once; weights are rounded
    to the type of the values for their product, as in plain code of that type. Float32 is
    multiplied by three products of the tensor cores. Deterministic.
    """

    name = "triton"

    def supports(self, problem: AttentionProblem) -> Verdict:
        """Accept float16, bfloat16 and float32 of head dimensions up to 256."""
        verdict = ready(problem.device)
        if not verdict.ok:
            return verdict
        if problem.dtype == "float64":
            return Verdict(False, "computes in float32, not in float64")
        if problem.dtype == "bfloat16" and problem.device == "cpu":
            return Verdict(False, "Triton's interpreter multiplies bfloat16 wrongly")
        if max(problem.head_dim, problem.value_dim) > MAX_DIM:
            return Verdict(False, f"takes head dimensions up to {MAX_DIM}")
        for side in (problem.key_format, problem.value_format):
            if side not in FORMATS:
                return Verdict(
                    False, f"reads codes of 4 or 8 bits with one scale a row, not {side}"
                )
        return YES

    def plan(self, problem: AttentionProblem) -> TritonPlan:
        """Return the tiles that :meth:`forward` takes by default."""
        return _plan(problem, paged=False)

    def forward(
        self, problem: AttentionProblem, arrays: AttentionArrays, plan: TritonPlan | None = None
    ) -> tuple[Array, Array]:
        """Return output (batch, q_heads, q_len, value_dim) and lse (batch, q_heads, q_len)."""
        from tesseral.attention.backends.triton.launch import run_dense

        return run_dense(problem, arrays, plan or self.plan(problem))

    def forward_sequences(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        sequences: Sequences,
        plan: TritonPlan | None = None,
    ) -> tuple[Array, Array]:
        """Return output (total_q, q_heads, value_dim) and lse (total_q, q_heads)."""
        from tesseral.attention.backends.triton.launch import run_sequences

        plan = plan or _plan(problem, paged=sequences.block_tables is not None)
        return run_sequences(problem, arrays, sequences, plan)

    def backward(
        self,
        problem: AttentionProblem,
        forward: "Forward",
        grad_output: Array,
        grad_lse: Array | None,
        into: "Gradients",
    ) -> None:
        """Write the gradients of a dense call; see :func:`tesseral.attention.backward.backward`.

        Gradients of masks and slopes are left to that function, with all others of the call.
        """
        from tesseral.attention.backends.triton.launch import run_backward

        run_backward(problem, forward, grad_output, grad_lse, into)


def _plan(problem: AttentionProblem, *, paged: bool) -> TritonPlan:
    rows = problem.group * problem.q_len
    coded = problem.key_format != "dense" or problem.value_format != "dense"
    kernel: Kernel = "tiles"
    if paged or coded or rows <= MOST_ROWS or problem.kv_len == 0:
        kernel = "rows"
    config = choose_tiles(problem, kernel, architecture(problem.device))
    splits = count_splits(problem, config) if kernel == "rows" else 1
    row_bytes = 4 * (problem.value_dim + 2) * problem.batch * problem.q_heads * problem.q_len
    return TritonPlan(
        batch_tile=1,
        head_tile=1,
        q_tile=config.q_tile if kernel == "tiles" else max(1, config.q_tile // problem.group),
        k_tile=config.k_tile,
        workspace_bytes=splits * row_bytes if splits > 1 else 0,
        kernel=kernel,
        config=config,
        splits=splits,
    )
