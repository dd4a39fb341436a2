"""What a parameter may be, as data, and one message for everything it may not.

A parameter lists the constraints of which it must meet one; the message names the
parameter, its owner, what would fit and what was given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any

import numpy as np

from tesseral._errors import ParameterError


@dataclass(frozen=True, slots=True)
class Constraint:
    """A set of values that a parameter may take.

    Attributes
    ----------
    description : str
        The set in words, to follow "must be".
    accepts : callable
        Says whether a value is in the set.
    """

    description: str
    accepts: Callable[[Any], bool]


def integer(low: int, high: int | None = None) -> Constraint:
    """Accept integers from ``low`` to ``high``, both included."""
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    return Constraint(
        f"an integer {bounds}",
        lambda value: (
            isinstance(value, Integral)
            and not isinstance(value, bool)
            and low <= int(value) <= (inf if high is None else high)
        ),
    )


def real(low: float = -inf, high: float = inf, *, exclude_low: bool = False) -> Constraint:
    """Accept finite real numbers from ``low`` to ``high``; not ``low`` if so asked."""
    start = f"above {low:g}" if exclude_low else f"at least {low:g}"
    bounds = [start] if low > -inf else []
    if high < inf:
        bounds.append(f"at most {high:g}")
    return Constraint(
        " ".join(["a finite number", " and ".join(bounds)]).rstrip(),
        lambda value: (
            isinstance(value, Real)
            and not isinstance(value, bool | np.bool_)
            and low <= float(value) <= high
            and isfinite(value)
            and not (exclude_low and value == low)
        ),
    )


def choice(*options: str) -> Constraint:
    """Accept one of some words."""
    return Constraint(
        " or ".join(repr(option) for option in options),
        lambda value: isinstance(value, str) and value in options,
    )


def sequence_of(item: Constraint, *, length: int | None = None) -> Constraint:
    """Accept a list, tuple or one-dimensional array whose items all meet ``item``."""
    count = "" if length is None else f" of length {length}"
    return Constraint(
        f"a sequence{count} whose items are each {item.description}",
        lambda value: (
            isinstance(value, Sequence | np.ndarray)
            and not isinstance(value, str)
            and (length is None or len(value) == length)
            and all(item.accepts(entry) for entry in value)
        ),
    )


BOOLEAN = Constraint("a boolean", lambda value: isinstance(value, bool | np.bool_))

NONE = Constraint("None", lambda value: value is None)

SEED = Constraint(
    "a seed (None, an integer at least 0 or a NumPy generator)",
    lambda value: (
        value is None
        or isinstance(value, np.random.Generator | np.random.RandomState)
        or integer(0).accepts(value)
    ),
)


def check_parameter(owner: str, name: str, value: object, *allowed: Constraint) -> None:
    """Raise unless ``value`` meets one of the constraints.

    Parameters
    ----------
    owner : str
        The function or class that the parameter belongs to.
    name : str
        Name of the parameter.
    value : object
        What was given.
    *allowed : Constraint
        At least one.

    Raises
    ------
    ParameterError
        If it meets none.

    Examples
    --------
    >>> check_parameter("hooi", "tol", 0.1, real(0), NONE)
    >>> check_parameter("hooi", "tol", -1, real(0))
    Traceback (most recent call last):
    ...
    tesseral._errors.ParameterError: hooi: parameter tol must be a finite number at least 0; got -1.
    """
    if not any(constraint.accepts(value) for constraint in allowed):
        words = ", or ".join(constraint.description for constraint in allowed)
        raise ParameterError(f"{owner}: parameter {name} must be {words}; got {value!r}.")
