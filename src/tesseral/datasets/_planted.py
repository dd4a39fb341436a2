"""What the simulators share: sizes, and noise of three families."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral.core.constraints import Constraint, choice, sequence_of
from tesseral.core.ties import SIZE, Ties

FAMILY = choice("normal", "binomial", "poisson")
SIZES = Constraint(
    "a sequence of at least two integers, each at least 1",
    lambda value: sequence_of(SIZE).accepts(value) and len(value) >= 2,
)


def observe(
    mean: NDArray[Any], family: str, noise: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Draw one observation of every entry: float64, or uint8 of 0 and 1, or int64 counts."""
    if family == "normal":
        return mean + noise * rng.standard_normal(mean.shape)
    if family == "binomial":
        return (rng.random(mean.shape) < mean).astype(np.uint8)
    return rng.poisson(mean)


def mirror(tensor: NDArray[Any], ties: Ties) -> NDArray[Any]:
    """Make a tensor exactly symmetric: every entry is the one at its sorted tied indices."""
    indices = list(np.ogrid[tuple(slice(size) for size in tensor.shape)])
    for group in ties:
        ordered = np.sort(np.stack(np.broadcast_arrays(*(indices[mode] for mode in group))), axis=0)
        for mode, index in zip(group, ordered, strict=True):
            indices[mode] = index
    return tensor[tuple(indices)]
