"""Choosing the rank: by BIC, or by how well entries are predicted that were left out."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from tesseral._errors import ParameterError, TesseralWarning
from tesseral.core import StoppingRule, as_generator
from tesseral.core._arrays import array_namespace, like, to_float
from tesseral.core.ties import Ties
from tesseral.regress._evaluate import evaluate
from tesseral.regress._fitting import Options, fit_rank
from tesseral.regress._problem import Penalty, cut
from tesseral.regress._response import orbit_labels
from tesseral.regress._setup import Setup, degrees_of_freedom

DEFAULT_MAXIMUM = 8

_TOLERANCE = 1e-6
"""Fits that are only compared need not be polished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rank that was tried.

    Attributes
    ----------
    rank : tuple of int
    dof : int
    log_likelihood : float
        Of all data ("bic"), or of entries that were left out, summed over folds ("cv").
    score : float
        Lower is better: BIC, or minus twice the log-likelihood of an entry left out, on average.
    error : float or None
        Standard error of that average over folds.
    """

    rank: tuple[int, ...]
    dof: int
    log_likelihood: float
    score: float
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How a rank was chosen.

    Attributes
    ----------
    criterion : {"bic", "cv"}
    trials : tuple of Trial
        In the order in which they were tried.
    best : tuple of int
        The rank of lowest score; of equals, the one with the fewest parameters.
    """

    criterion: str
    trials: tuple[Trial, ...]

    @property
    def best(self) -> tuple[int, ...]:
        """The rank of lowest score."""
        return min(self.trials, key=lambda trial: (trial.score, trial.dof)).rank

    def table(self) -> list[dict[str, Any]]:
        """Return one record for each rank, best first; a data frame can be made of them."""
        ranked = sorted(self.trials, key=lambda trial: (trial.score, trial.dof))
        return [
            {
                "rank": trial.rank,
                "dof": trial.dof,
                "log_likelihood": trial.log_likelihood,
                self.criterion: trial.score,
                "standard_error": trial.error,
            }
            for trial in ranked
        ]


def select_rank(
    where: str,
    setup: Setup,
    options: Options,
    *,
    criterion: str,
    candidates: Any,
    search: str,
    folds: int,
    n_jobs: int | None,
) -> Selection:
    """Try ranks and return what was found.

    Parameters
    ----------
    where : str
        Name of the estimator, for messages.
    setup, options
        The regression, and how to fit it.
    criterion : {"bic", "cv"}
    candidates : None, int, sequence of tuple, or sequence of K sequences of int
        See :class:`TensorResponseRegressor`.
    search : {"local", "grid"}
        ``"local"`` goes up the diagonal of equal ranks until it gets worse twice, and then to
        better neighbours, as long as there are any.
    folds : int
    n_jobs : int or None
        Fits at a time; None leaves it to joblib's configuration.
    """
    rough = replace(
        options, rule=StoppingRule(max_iter=options.rule.max_iter, tol=_TOLERANCE), n_init=1
    )
    if criterion == "cv":
        labels = fold_labels(setup, folds, options.random_state)
        score: Callable[[tuple[int, ...]], Trial] = _CrossValidation(setup, rough, labels, folds)
    else:
        score = _Criterion(setup, rough)
    space = _Space(where, setup, candidates)

    def run(ranks: Iterable[tuple[int, ...]]) -> list[Trial]:
        return list(Parallel(n_jobs=n_jobs)(delayed(score)(rank) for rank in ranks))

    if space.listed is not None or search == "grid":
        found = run(space.listed if space.listed is not None else space.all())
    else:
        found = _walk(space, run)
    return Selection(criterion=criterion, trials=tuple(found))


def fold_labels(setup: Setup, folds: int, random_state: Any) -> NDArray[np.int64]:
    """Return the fold of every entry; entries that tied modes make equal are in one fold."""
    shape = setup.problem.shape
    drawn = as_generator(random_state).integers(folds, size=prod(shape))
    return drawn[orbit_labels(shape, setup.problem.groups)].reshape(shape)


class _Criterion:
    """BIC of a rank; a class, so that it can be sent to another process."""

    def __init__(self, setup: Setup, options: Options) -> None:
        self.setup = setup
        self.options = options

    def __call__(self, rank: tuple[int, ...]) -> Trial:
        problem = self.setup.problem
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TesseralWarning)
            fit, _, _ = fit_rank(self.setup, rank, self.options)
        kernels = fit.found.kernels
        if problem.family.separable:
            kernels = evaluate(problem, fit.point, None).kernels  # without a barrier
        value = problem.family.total(kernels, problem.seen, fit.point.dispersion)
        dof = degrees_of_freedom(problem, rank)
        score = -2 * value + dof * np.log(problem.seen.total_weight)
        return Trial(rank=rank, dof=dof, log_likelihood=value, score=float(score))


class _CrossValidation:
    """Minus twice the log-likelihood of entries left out, fold by fold."""

    def __init__(
        self, setup: Setup, options: Options, labels: NDArray[np.int64], folds: int
    ) -> None:
        self.setup = setup
        self.options = options
        self.labels = labels
        self.folds = folds

    def __call__(self, rank: tuple[int, ...]) -> Trial:
        sums, counts = zip(*(self._fold(rank, fold) for fold in range(self.folds)), strict=True)
        means = [-2 * total / count for total, count in zip(sums, counts, strict=True) if count]
        error = float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else None
        return Trial(
            rank=rank,
            dof=degrees_of_freedom(self.setup.problem, rank),
            log_likelihood=float(sum(sums)),
            score=-2 * float(sum(sums)) / float(sum(counts)),
            error=error,
        )

    def _fold(self, rank: tuple[int, ...], fold: int) -> tuple[float, float]:
        """Return the log-likelihood of a fold by a fit to the others, and its weight."""
        kept = self.labels != fold
        training, test = reweighted(self.setup, kept), reweighted(self.setup, ~kept)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TesseralWarning)
            fit, _, _ = fit_rank(training, rank, self.options)
        family = self.setup.problem.family
        trained = evaluate(training.problem.with_penalty(Penalty()), fit.point, None)
        dispersion = fit.point.dispersion
        if family.name in ("normal", "gamma"):
            dispersion = family.profile_dispersion(trained.kernels, training.problem.seen)
        tested = evaluate(test.problem.with_penalty(Penalty()), fit.point, None)
        seen = test.problem.seen
        return family.held_out(tested.kernels, seen, dispersion), seen.total_weight


def reweighted(setup: Setup, kept: NDArray[np.bool_]) -> Setup:
    """Return the same regression on some of its entries."""
    xp = array_namespace("TensorResponseRegressor", setup.tensor)
    flags = like(kept, setup.tensor, dtype=setup.tensor.dtype)
    weights = flags if setup.weights is None else setup.weights * flags
    if to_float(xp.sum(weights)) == 0:
        raise ParameterError("TensorResponseRegressor: a fold is empty; take fewer folds.")
    observed = weights > 0
    family = setup.problem.family
    seen = family.observations(setup.tensor, weights)
    n_entries = max(setup.problem.chunks[0].tensor.shape[0], 1) * prod(setup.problem.shape[1:])
    problem = replace(
        setup.problem,
        chunks=cut(setup.tensor, weights, setup.offset, entries=n_entries),
        seen=seen,
    )
    return replace(setup, problem=problem, observed=observed, weights=weights)


class _Space:
    """The ranks that may be tried."""

    def __init__(self, where: str, setup: Setup, candidates: Any) -> None:
        problem = setup.problem
        self.groups: Ties = problem.groups
        self.order = problem.order
        self.listed: list[tuple[int, ...]] | None = None
        limits = problem.widths
        if candidates is None or isinstance(candidates, int | np.integer):
            most = DEFAULT_MAXIMUM if candidates is None else int(candidates)
            self.choices = [list(range(1, min(most, limit) + 1)) for limit in limits]
            return
        if all(isinstance(item, tuple) for item in candidates):
            self.listed = [tuple(int(r) for r in item) for item in candidates]
            self.choices = []
            self._check(where, limits)
            return
        if len(candidates) != self.order:
            raise ParameterError(
                f"{where}: candidates must be a number, tuples of {self.order} ranks, or "
                f"{self.order} lists of ranks, one for each mode; got {candidates!r}."
            )
        self.choices = [
            sorted({int(r) for r in item if 1 <= int(r) <= limit})
            for item, limit in zip(candidates, limits, strict=True)
        ]
        if not all(self.choices) or not any(True for _ in self.all()):
            raise ParameterError(f"{where}: no rank among candidates fits the data.")

    def _check(self, where: str, limits: tuple[int, ...]) -> None:
        assert self.listed is not None
        for rank in self.listed:
            fits = len(rank) == self.order and all(
                1 <= r <= limit for r, limit in zip(rank, limits, strict=True)
            )
            if not fits or not self.allows(rank):
                raise ParameterError(f"{where}: rank {rank} among candidates does not fit.")
        if not self.listed:
            raise ParameterError(f"{where}: candidates must not be empty.")

    def allows(self, rank: tuple[int, ...]) -> bool:
        """Say whether ranks fit each other and the ties."""
        return all(r * r <= prod(rank) for r in rank) and all(
            len({rank[mode] for mode in group}) == 1 for group in self.groups
        )

    def all(self) -> Iterable[tuple[int, ...]]:
        """Yield every rank of the grid."""
        return (rank for rank in product(*self.choices) if self.allows(rank))

    def nearest(self, size: int) -> tuple[int, ...]:
        """Return the choice of every mode that is largest without being above ``size``."""
        return tuple(
            max([r for r in choices if r <= size] or choices[:1]) for choices in self.choices
        )

    def neighbours(self, rank: tuple[int, ...], moved: int) -> Iterable[tuple[int, ...]]:
        """Yield ranks where ``moved`` groups of modes go one choice up or down."""
        for steps in product((-1, 0, 1), repeat=len(self.groups)):
            if sum(map(abs, steps)) != moved:
                continue
            places = [choices.index(r) for choices, r in zip(self.choices, rank, strict=True)]
            for group, step in zip(self.groups, steps, strict=True):
                for mode in group:
                    places[mode] += step
            inside = all(
                0 <= place < len(choices)
                for place, choices in zip(places, self.choices, strict=True)
            )
            if inside:
                found = tuple(c[place] for place, c in zip(places, self.choices, strict=True))
                if self.allows(found):
                    yield found


def _walk(space: _Space, run: Callable[[Iterable[tuple[int, ...]]], list[Trial]]) -> list[Trial]:
    """Try equal ranks first, then the neighbours of the best, by one mode and by two."""
    tried: dict[tuple[int, ...], Trial] = {}

    def attempt(ranks: Iterable[tuple[int, ...]]) -> None:
        new = [rank for rank in dict.fromkeys(ranks) if rank not in tried]
        tried.update({trial.rank: trial for trial in run(new)})

    def best() -> Trial:
        return min(tried.values(), key=lambda trial: (trial.score, trial.dof))

    worse = 0
    for size in range(1, max(max(choices) for choices in space.choices) + 1):
        rank = space.nearest(size)
        if rank in tried or not space.allows(rank):
            continue
        before = best().score if tried else np.inf
        attempt([rank])
        worse = worse + 1 if tried[rank].score >= before else 0
        if worse == 2:
            break
    if not tried:
        attempt(list(space.all())[:1])
    while True:
        centre = best()
        for moved in (1, 2):
            attempt(space.neighbours(centre.rank, moved))
            if best() is not centre:
                break
        else:
            return list(tried.values())
