"""Attention in CUDA C++: Turing's kernel, and Volta's with scores in float32 or in float16."""

from dataclasses import dataclass

from tesseral.attention.backends.cuda.chips import (
    MAX_DIM,
    TURING,
    VOLTA,
    VOLTA_HALF,
    Chip,
    Tiles,
    count_splits,
)
from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.sequences import Sequences
from tesseral.core._arrays import Array
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.cuda.program import target
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.triton import installed

LONGEST = 2**29
"""Rows of a group and keys of a sequence that places are counted for."""

MOST_HEADS = 65535
"""Key heads of all batch entries: the second side of a grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaPlan(TilePlan):
    """Tiles of a kernel in CUDA C++.

    Attributes
    ----------
    tiles : Tiles
        How the call is cut.
    splits : int
        Blocks of threads that share the keys of one tile of rows, and leave parts to merge.
    """

    tiles: Tiles
    splits: int


class CudaBackend:
    """Exact attention of float16 on the tensor cores of one chip, and on later ones.

    Weights, sums and, but for ``volta_half``, scores are float32 and the output is rounded once;
    weights are rounded to float16 for their product. Deterministic. Later chips run the
    same instructions, and may have to emulate them: there this is for tests.
    """

    name: str
    chip: Chip

    def supports(self, problem: AttentionProblem) -> Verdict:
        """Accept float16 of head dimensions up to 256 on CUDA devices from the chip's up."""
        refusal = self._refuse_device(problem.device) or self._refuse(problem)
        return Verdict(False, refusal) if refusal else YES

    def plan(self, problem: AttentionProblem) -> CudaPlan:
        """Return the tiles that :meth:`forward` takes by default."""
        tiles = self.chip.tiles(problem)
        splits = count_splits(problem, tiles, cuda.multiprocessors(problem.device))
        lines = problem.batch * problem.q_heads * problem.q_len
        return CudaPlan(
            batch_tile=1,
            head_tile=1,
            q_tile=max(1, tiles.rows // problem.group),
            k_tile=tiles.keys,
            workspace_bytes=4 * splits * lines * (problem.value_dim + 1) if splits > 1 else 0,
            tiles=tiles,
            splits=splits,
        )

    def forward(
        self, problem: AttentionProblem, arrays: AttentionArrays, plan: CudaPlan | None = None
    ) -> tuple[Array, Array]:
        """Return output (batch, q_heads, q_len, value_dim) and lse (batch, q_heads, q_len)."""
        from tesseral.attention.backends.cuda.launch import run_dense

        return run_dense(self.chip, problem, arrays, plan or self.plan(problem))

    def forward_sequences(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        sequences: Sequences,
        plan: CudaPlan | None = None,
    ) -> tuple[Array, Array]:
        """Return output (total_q, q_heads, value_dim) and lse (total_q, q_heads)."""
        from tesseral.attention.backends.cuda.launch import run_sequences

        return run_sequences(self.chip, problem, arrays, sequences, plan or self.plan(problem))

    def _refuse_device(self, device: str) -> str:
        """Return why kernels cannot run on a device, nothing if they can."""
        if not device.startswith("cuda"):
            return f"runs on CUDA devices, not on {device}"
        if not installed("torch"):
            return "needs torch: pip install 'tesseral[cuda]'"
        found = cuda.capability(device)
        if found is None:
            return "torch sees no CUDA device of NVIDIA"
        oldest = self.chip.architecture
        if found[0] * 10 + found[1] < oldest:
            return "needs compute capability {}, {} has {}.{}".format(oldest / 10, device, *found)
        if target(oldest, found[0] * 10 + found[1]) is None:
            return (
                "needs an NVRTC that compiles for compute capability {}.{}, which CUDA 12 has: "
                "pip install 'tesseral[cuda]'"
            ).format(*found)
        return ""

    def _refuse(self, problem: AttentionProblem) -> str:
        """Return why a call cannot run on any device, nothing if it can."""
        if problem.dtype != "float16":
            return f"multiplies float16, not {problem.dtype}"
        dims = (problem.head_dim, problem.value_dim)
        if max(dims) > MAX_DIM or any(dim % 8 for dim in dims):
            return f"takes head dimensions of multiples of 8 up to {MAX_DIM}"
        for side in (problem.key_format, problem.value_format):
            if side != "dense":
                return f"reads plain keys and values, not {side}"
        if max(problem.q_len * problem.group, problem.kv_len) > LONGEST:
            return f"takes up to {LONGEST} keys, and rows of a group"
        if problem.batch * problem.kv_heads > MOST_HEADS:
            return f"takes up to {MOST_HEADS} key heads, all batch entries counted"
        return ""


class TuringBackend(CudaBackend):
    """For compute capability 7.5: ``mma.m16n8k8``, native up to 9.0."""

    name = "turing"
    chip = TURING


class VoltaBackend(CudaBackend):
    """For compute capability 7.0: ``mma.m8n8k4``, emulated and slow from 8.0 on."""

    name = "volta"
    chip = VOLTA


class VoltaHalfBackend(CudaBackend):
    """The same with scores in float16: fewer registers and exchanges, larger errors."""

    name = "volta_half"
    chip = VOLTA_HALF
