"""When an iteration stops, written once.

A :class:`StoppingRule` starts a :class:`Progress`; each iteration returns the next one,
nothing is changed in place; at the end it gives a :class:`Result`. Not converging is a
result with a reason, not an error.

>>> rule = StoppingRule(max_iter=50, tol=1e-3)
>>> progress, x = rule.start(), 2.0
>>> while not progress.done:
...     x = (x + 2 / x) / 2
...     progress = progress.update(x)
>>> progress.result.n_iter, progress.result.reason.value
(4, 'small_change')
"""

import enum
import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tesseral._errors import ConvergenceWarning
from tesseral.core._arrays import Array, to_numpy
from tesseral.core.constraints import NONE, check_parameter, integer, real


class Reason(enum.Enum):
    """Why an iteration stopped; ``text`` says it in words."""

    SMALL_CHANGE = "small_change"
    SAME_LABELS = "same_labels"
    CYCLING_LABELS = "cycling_labels"
    NOT_FINITE = "not_finite"
    MAX_ITER = "max_iter"

    @property
    def converged(self) -> bool:
        """Whether stopping for this reason means that the iteration arrived."""
        return self in (Reason.SMALL_CHANGE, Reason.SAME_LABELS)

    @property
    def text(self) -> str:
        """What happened and, if it did not converge, what to try."""
        return _TEXTS[self]


_TEXTS = {
    Reason.SMALL_CHANGE: "the relative change of the objective is within the tolerance",
    Reason.SAME_LABELS: "the labels did not change in the last iteration",
    Reason.CYCLING_LABELS: (
        "the labels are those of an earlier iteration but not of the last, so further "
        "iterations would go round in a circle; try other starts"
    ),
    Reason.NOT_FINITE: (
        "the objective became NaN or infinite; look at the scale of the data or regularise more"
    ),
    Reason.MAX_ITER: (
        "the iterations ran out before the stopping rule was met; raise max_iter or the tolerance"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How an iteration ended.

    Attributes
    ----------
    reason : Reason
        Why it stopped.
    n_iter : int
        Number of iterations done.
    history : tuple of float
        The objective at the start, if it was given, and after each iteration.
    """

    reason: Reason
    n_iter: int
    history: tuple[float, ...]

    @property
    def converged(self) -> bool:
        """Whether the stopping rule was met."""
        return self.reason.converged

    def warn_unless_converged(self, where: str, *, stacklevel: int = 2) -> None:
        """Give one :class:`ConvergenceWarning` naming ``where``, unless it converged."""
        if not self.converged:
            iterations = f"{self.n_iter} iteration{'' if self.n_iter == 1 else 's'}"
            warnings.warn(
                f"{where}: stopped after {iterations}: {self.reason.text}.",
                ConvergenceWarning,
                stacklevel=stacklevel + 1,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingRule:
    """When to stop.

    Parameters
    ----------
    max_iter : int
        Most iterations to do, at least 1.
    tol : float or None
        Stop when the objective changes by at most ``tol`` times the larger of its last two
        magnitudes; ``None`` never stops for this reason.

    Raises
    ------
    ParameterError
        If a value is out of range.
    """

    max_iter: int = 100
    tol: float | None = 1e-8

    def __post_init__(self) -> None:
        check_parameter("StoppingRule", "max_iter", self.max_iter, integer(1))
        check_parameter("StoppingRule", "tol", self.tol, real(0), NONE)

    def start(
        self, value: float | None = None, labels: Sequence[Array] | None = None
    ) -> "Progress":
        """Begin, with the objective and the labels before the first iteration if known."""
        return Progress(
            rule=self,
            history=() if value is None else (float(value),),
            seen=() if labels is None else (_fingerprint(labels),),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The state of an iteration: what was seen so far and whether to stop.

    Attributes
    ----------
    rule : StoppingRule
        The rule that started it.
    n_iter : int
        Number of iterations done.
    history : tuple of float
        See :class:`Result`.
    reason : Reason or None
        Why to stop; ``None`` to go on.
    """

    rule: StoppingRule
    n_iter: int = 0
    history: tuple[float, ...] = ()
    reason: Reason | None = None
    seen: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def done(self) -> bool:
        """Whether the iteration is over."""
        return self.reason is not None

    @property
    def result(self) -> Result:
        """How it ended; only when ``done``."""
        assert self.reason is not None, "the iteration is still going on"
        return Result(reason=self.reason, n_iter=self.n_iter, history=self.history)

    def update(self, value: float, labels: Sequence[Array] | None = None) -> "Progress":
        """Return the state after one more iteration.

        Parameters
        ----------
        value : float
            The objective after it.
        labels : sequence of integer arrays, optional
            The labels after it, one array for each mode. Give them only where an iteration
            depends on nothing but the labels before it.
        """
        history = (*self.history, float(value))
        seen = self.seen if labels is None else (*self.seen, _fingerprint(labels))
        after = replace(self, n_iter=self.n_iter + 1, history=history, seen=seen)
        return replace(after, reason=after._judge(new_labels=labels is not None))

    def _judge(self, *, new_labels: bool) -> Reason | None:
        reason = Reason.MAX_ITER if self.n_iter >= self.rule.max_iter else None
        if not math.isfinite(self.history[-1]):
            reason = Reason.NOT_FINITE
        elif new_labels and self.seen[-1] in self.seen[-2:-1]:
            reason = Reason.SAME_LABELS
        elif self._small_change():
            reason = Reason.SMALL_CHANGE
        elif new_labels and self.seen[-1] in self.seen[:-1]:
            reason = Reason.CYCLING_LABELS
        return reason

    def _small_change(self) -> bool:
        if self.rule.tol is None or len(self.history) < 2:
            return False
        before, now = self.history[-2:]
        return abs(now - before) <= self.rule.tol * max(abs(before), abs(now))


def _fingerprint(labels: Sequence[Array]) -> bytes:
    """Return a digest of the labels of all modes, so that old ones cost no memory."""
    digest = hashlib.blake2b(digest_size=16)
    for mode_labels in labels:
        values = np.ascontiguousarray(to_numpy(mode_labels), dtype=np.int64)
        digest.update(str(values.shape).encode())
        digest.update(values.tobytes())
    return digest.digest()
