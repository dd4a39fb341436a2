"""The attention backends, best first."""

from typing import Protocol

from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionArrays, AttentionProblem
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


BACKENDS: Registry[AttentionProblem, AttentionBackend] = Registry(
    "attention",
    {
        "blockwise": "tesseral.attention.backends.blockwise:BlockwiseBackend",
        "reference": "tesseral.attention.backends.reference:ReferenceBackend",
    },
    env="TESSERAL_ATTENTION_BACKEND",
)
