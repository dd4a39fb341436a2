"""Random numbers: a seed in, a generator inside, no global state."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from tesseral.core._arrays import Array, like
from tesseral.core.constraints import SEED, check_parameter

Seed: TypeAlias = int | np.random.Generator | np.random.RandomState | None
"""What a ``random_state`` argument may be."""


def as_generator(random_state: Seed, where: str = "as_generator") -> np.random.Generator:
    """Turn a seed into a generator.

    Parameters
    ----------
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        ``None`` gives fresh entropy. An integer gives the same stream each time. A generator
        is returned as it is, so its state moves on. A ``RandomState`` lends one seed.
    where : str
        Name of the caller, for messages.

    Raises
    ------
    ParameterError
        If it is anything else.

    Examples
    --------
    >>> as_generator(7).integers(100) == as_generator(7).integers(100)
    np.True_
    """
    check_parameter(where, "random_state", random_state, SEED)
    if isinstance(random_state, np.random.RandomState):
        return np.random.default_rng(random_state.randint(2**32, dtype=np.uint32))
    return np.random.default_rng(random_state)


def spawn(random_state: Seed, n: int) -> list[np.random.Generator]:
    """Return ``n`` independent generators, one for each restart of a method.

    A restart gets the same stream whatever order the restarts run in and however many follow.

    Examples
    --------
    >>> first, second = spawn(0, 2)
    >>> first.integers(1000) == spawn(0, 5)[0].integers(1000)
    np.True_
    """
    return as_generator(random_state, "spawn").spawn(n)


def standard_normal(
    random_state: Seed, shape: int | Sequence[int], reference: Array | None = None
) -> Array:
    """Draw independent standard normal numbers.

    Parameters
    ----------
    random_state : seed
        See :func:`as_generator`.
    shape : int or sequence of int
        Shape of the result.
    reference : array, optional
        Framework, device and data type of the result; ``None`` gives NumPy float64. Every
        framework gets the same numbers, up to rounding.

    Examples
    --------
    >>> standard_normal(0, (2, 3)).shape
    (2, 3)
    """
    drawn: np.ndarray[Any, Any] = as_generator(random_state, "standard_normal").standard_normal(
        shape
    )
    return drawn if reference is None else like(drawn, reference)
