"""What the simulators share: sizes per mode, tied modes, and noise of three families."""

from collections.abc import Sequence
from itertools import permutations, product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import ParameterError, ShapeError
from tesseral.core.constraints import (
    BOOLEAN,
    Constraint,
    check_parameter,
    choice,
    integer,
    sequence_of,
)

FAMILY = choice("normal", "binomial", "poisson")
SIZE = integer(1)
SIZES = Constraint(
    "a sequence of at least two integers, each at least 1",
    lambda value: sequence_of(SIZE).accepts(value) and len(value) >= 2,
)

Ties: TypeAlias = tuple[tuple[int, ...], ...]
"""Groups of modes that share everything; every mode is in exactly one."""


def per_mode(where: str, name: str, value: Any, order: int, item: Constraint = SIZE) -> list[Any]:
    """Return one value for each of ``order`` modes; a single one counts for all of them."""
    check_parameter(where, name, value, item, sequence_of(item, length=order))
    return [value] * order if item.accepts(value) else list(value)


def tie_modes(where: str, symmetric: bool | Sequence[Sequence[int]], order: int) -> Ties:
    """Return the groups of modes that ``symmetric`` ties together.

    ``True`` ties all modes, ``False`` none; otherwise each item names modes to tie.
    """
    if isinstance(symmetric, bool):
        return (tuple(range(order)),) if symmetric else tuple((mode,) for mode in range(order))
    modes = sequence_of(integer(0, order - 1))
    check_parameter(where, "symmetric", symmetric, BOOLEAN, sequence_of(modes))
    groups: list[tuple[int, ...]] = [tuple(group) for group in symmetric]
    named = [mode for group in groups for mode in group]
    if len(set(named)) != len(named):
        raise ParameterError(f"{where}: symmetric names a mode twice, got {symmetric!r}.")
    groups.extend((mode,) for mode in range(order) if mode not in named)
    return tuple(sorted(group for group in groups if group))


def check_tied(where: str, name: str, values: Sequence[Any], ties: Ties) -> None:
    """Raise ``ShapeError`` unless tied modes have equal ``values``."""
    for group in ties:
        if len({values[mode] for mode in group}) > 1:
            raise ShapeError(
                f"{where}: modes {group} are tied and need equal {name}, "
                f"got {[values[mode] for mode in group]}."
            )


def symmetrise(tensor: NDArray[Any], ties: Ties) -> NDArray[Any]:
    """Average a tensor over every reordering of its tied modes."""
    reordered = []
    for images_of in product(*(permutations(group) for group in ties)):
        axes = [0] * tensor.ndim
        for group, images in zip(ties, images_of, strict=True):
            for mode, image in zip(group, images, strict=True):
                axes[mode] = image
        reordered.append(np.transpose(tensor, axes))
    return np.asarray(np.mean(reordered, axis=0))


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
