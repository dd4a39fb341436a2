"""What is measured of several ranks, and what must hold."""

from dataclasses import asdict, dataclass
from typing import Any

from tesseral._errors import ParameterError

HIDES = 0.7
"""Share of a sum's exposed time that must be hidden on long inputs."""

NEVER_BELOW = 0.98
"""How fast the chosen plan must be beside the plain sequence, on all inputs."""

LINKED = 1.3
"""How many times as fast as the plain sequence, on CPUs where sums take a third of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Shapes of one decoder layer, of all ranks together.

    Attributes
    ----------
    q_heads, kv_heads, head_dim, hidden, intermediate : int
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A layer, on which lengths, and how often.

    Attributes
    ----------
    layer : Layer
    lengths : tuple of int
        Tokens of the one sequence.
    mlp_lengths : tuple of int
        Those at which the MLP's down projection is measured, too.
    dtype : str
    repeats : int
        Samples of each side.
    section_s : float
        Shortest time of a sample.
    held_from : int
        Length from which :data:`HIDES`, or :data:`LINKED`, must hold.
    timeline : int
        Length whose timeline is drawn.
    recorded : int
        Longest input whose calls are recorded as graphs, on CUDA.
    """

    layer: Layer
    lengths: tuple[int, ...]
    mlp_lengths: tuple[int, ...]
    dtype: str
    repeats: int
    section_s: float
    held_from: int
    timeline: int
    recorded: int = 16384


LLAMA_70B = Layer(q_heads=64, kv_heads=8, head_dim=128, hidden=8192, intermediate=28672)
LLAMA_8B = Layer(q_heads=32, kv_heads=8, head_dim=128, hidden=4096, intermediate=14336)

GPU = Grid(
    layer=LLAMA_70B,
    lengths=tuple(512 << step for step in range(8)),
    mlp_lengths=(512, 4096, 16384, 65536),
    dtype="bfloat16",
    repeats=21,
    section_s=0.004,
    held_from=16384,
    timeline=16384,
)
CPU = Grid(
    layer=LLAMA_8B,
    lengths=(128, 512, 2048),
    mlp_lengths=(512,),
    dtype="float32",
    repeats=9,
    section_s=0.05,
    held_from=512,
    timeline=2048,
)


def check_ranks(size: int) -> None:
    """Refuse a number of ranks that does not divide the heads of the layers here.

    Raises
    ------
    ParameterError
    """
    heads = min(LLAMA_70B.kv_heads, LLAMA_8B.kv_heads)
    if heads % size:
        raise ParameterError(
            f"bench distributed: {size} ranks do not divide the {heads} key heads of the layer."
        )
