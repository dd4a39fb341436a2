"""The state of a softmax over part of the keys, and the rule that merges two of them.

Attention over a set of keys is a sum that can be taken in any order and any grouping: over
tiles, over devices, over parts of a cache. README.md derives the rule.
"""

from dataclasses import dataclass
from typing import Any, Self

from array_api_compat import array_namespace

from tesseral.core._arrays import Array, Namespace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SoftmaxState:
    """What a row of attention must remember of the keys it has met.

    Attributes
    ----------
    maximum : array of shape (..., rows, 1)
        Largest score met, ``-inf`` if none was visible. A mere unit of measurement: no
        gradient flows through it.
    total : array of shape (..., rows, 1)
        Sum of ``exp(score - maximum)``.
    accumulator : array of shape (..., rows, value_dim)
        Sum of ``exp(score - maximum) * value``.
    """

    maximum: Array
    total: Array
    accumulator: Array

    @classmethod
    def from_scores(cls, scores: Array, values: Array) -> Self:
        """Return the state after one set of keys.

        Parameters
        ----------
        scores : floating array of shape (..., rows, keys), keys >= 1
            ``-inf`` hides a key from a row.
        values : array of shape (..., keys, value_dim)
            Of the type of ``scores``.
        """
        xp = array_namespace(scores)
        maximum = xp.max(_constant(scores), axis=-1, keepdims=True)
        weights = xp.exp(scores - _finite(maximum, xp))
        total = xp.sum(weights, axis=-1, keepdims=True)
        return cls(maximum=maximum, total=total, accumulator=xp.matmul(weights, values))

    @classmethod
    def empty(cls, like: Array, rows: tuple[int, ...], value_dim: int) -> Self:
        """Return the state before any key, for ``rows`` of the type and device of ``like``."""
        xp = array_namespace(like)
        kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        return cls(
            maximum=xp.full((*rows, 1), -float("inf"), **kind),
            total=xp.zeros((*rows, 1), **kind),
            accumulator=xp.zeros((*rows, value_dim), **kind),
        )

    def merge(self, other: Self) -> Self:
        """Return the state after the keys of both; their leading axes broadcast."""
        xp = array_namespace(self.maximum)
        maximum = xp.maximum(self.maximum, other.maximum)
        unit = _finite(maximum, xp)
        ours, theirs = xp.exp(self.maximum - unit), xp.exp(other.maximum - unit)
        return type(self)(
            maximum=maximum,
            total=self.total * ours + other.total * theirs,
            accumulator=self.accumulator * ours + other.accumulator * theirs,
        )

    def finish(self) -> tuple[Array, Array]:
        """Return the outputs and the natural logarithms of the softmax denominators.

        Returns
        -------
        output : array of shape (..., rows, value_dim)
            Zero in a row that saw no key.
        lse : array of shape (..., rows)
            ``-inf`` in a row that saw no key.
        """
        xp = array_namespace(self.total)
        unseen = self.total == 0
        divisor = xp.where(unseen, xp.ones_like(self.total), self.total)
        # an unseen row adds log(1) to its maximum of -inf
        lse = self.maximum + xp.log(divisor)
        return self.accumulator / divisor, lse[..., 0]


def _constant(array: Array) -> Array:
    """Return ``array`` cut off from autograd, where there is one."""
    return array.detach() if hasattr(array, "detach") else array


def _finite(maximum: Array, xp: Namespace) -> Array:
    """Return a unit to subtract: zero in place of ``-inf``, since inf - inf is no number."""
    return xp.where(maximum == -float("inf"), xp.zeros_like(maximum), maximum)
