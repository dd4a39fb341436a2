"""The attention backends, best first."""

from typing import Protocol

from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.attention.sequences import Sequences
from tesseral.core._arrays import Array
from tesseral.runtime.registry import Backend, Registry


class AttentionBackend(Backend[AttentionProblem], Protocol):
    """What an attention backend offers besides its name and its verdict."""

    def plan(self, problem: AttentionProblem) -> TilePlan:
        """Return the tiles it would use."""
        ...

    def forward(self, problem: AttentionProblem, arrays: AttentionArrays) -> tuple[Array, Array]:
        """Return output and lse."""
        ...


class OutputBackend(AttentionBackend, Protocol):
    """A backend that can leave out the lse; optional, found by its method."""

    def output(self, problem: AttentionProblem, arrays: AttentionArrays) -> Array:
        """Return the output alone."""
        ...


class SequencesBackend(AttentionBackend, Protocol):
    """A backend that also runs many sequences in one call; optional, found by its method.

    A backend without it is called once for each sequence. One that has it is called for every
    problem that it supports, and may leave what it cannot do at once to
    :func:`tesseral.attention.call.run_each`.
    """

    def forward_sequences(
        self, problem: AttentionProblem, arrays: AttentionArrays, sequences: Sequences
    ) -> tuple[Array, Array]:
        """Return output (total_q, q_heads, value_dim) and lse (total_q, q_heads).

        ``problem.batch`` is the number of sequences, ``problem.q_len`` and ``kv_len`` are
        those of the longest; the diagonal of each ends at its own last query and key. There is
        no dense mask. Arrays lie as :class:`~tesseral.attention.sequences.Sequences` says.
        """
        ...


BACKENDS: Registry[AttentionProblem, AttentionBackend] = Registry(
    "attention",
    {
        "native": "tesseral.attention.backends.native:NativeBackend",
        "triton": "tesseral.attention.backends.triton.backend:TritonBackend",
        "turing": "tesseral.attention.backends.cuda.backend:TuringBackend",
        "volta": "tesseral.attention.backends.cuda.backend:VoltaBackend",
        "volta_half": "tesseral.attention.backends.cuda.backend:VoltaHalfBackend",
        "ascend": "tesseral.attention.backends.ascend.backend:AscendBackend",
        "blockwise": "tesseral.attention.backends.blockwise:BlockwiseBackend",
        "reference": "tesseral.attention.backends.reference:ReferenceBackend",
    },
    env="TESSERAL_ATTENTION_BACKEND",
)
