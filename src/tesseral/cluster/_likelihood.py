"""How well a block model explains the data, in three families."""

from dataclasses import dataclass
from math import log, pi, prod
from typing import Protocol

import numpy as np
from scipy.special import xlogy

from tesseral._errors import ParameterError
from tesseral.cluster._blocks import BlockFit, cluster_sums
from tesseral.cluster._source import Floats, Grouping, Source
from tesseral.core.ties import Ties
from tesseral.core.unfold import unfold


class Facts(Protocol):
    """What families ask of the entries of a tensor."""

    def is_binary(self) -> bool:
        """Say whether every entry is 0 or 1."""
        ...

    def smallest(self) -> float:
        """Return the smallest entry."""
        ...

    def log_factorials(self) -> float:
        """Return the sum of log(y!)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The distribution of entries around their mean.

    Attributes
    ----------
    name : {"normal", "binomial", "poisson"}
    log_factorials : float
        Sum of log(y!) over the entries, for counts.
    """

    name: str
    log_factorials: float = 0.0

    @classmethod
    def of(cls, where: str, name: str, facts: Facts) -> "Family":
        """Return a family for a tensor, or say why its entries cannot be of that family."""
        if name == "binomial" and not facts.is_binary():
            raise ParameterError(f"{where}: family='binomial' needs entries 0 and 1 only.")
        if name != "poisson":
            return cls(name=name)
        smallest = facts.smallest()
        if smallest < 0:
            raise ParameterError(
                f"{where}: family='poisson' needs counts; the smallest entry is {smallest:g}."
            )
        return cls(name=name, log_factorials=facts.log_factorials())

    def evaluate(
        self, source: Source, fit: BlockFit, variance: float | None = None
    ) -> "Evaluation":
        """Return the log-likelihood of data under a fit, and what it is made of.

        Normal data take their mean squared residual as variance unless one is given.
        """
        if self.name == "normal":
            squares = residual_squares(source, fit)
            mean_square = squares / source.n_observed
            variance = mean_square if variance is None else variance
            value = -source.n_observed / 2 * (log(2 * pi * variance) + mean_square / variance)
            return Evaluation(log_likelihood=value, residual_squares=squares, variance=mean_square)
        if self.name == "binomial":
            return Evaluation(log_likelihood=source.bernoulli(fit.groupings, fit.core))
        value = _log_mean_of_counts(source, fit) - _total_mean(source, fit) - self.log_factorials
        return Evaluation(log_likelihood=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How well a fit explains data.

    Attributes
    ----------
    log_likelihood : float
        Constants included.
    residual_squares, variance : float or None
        Sum and mean of squared residuals, of normal data.
    """

    log_likelihood: float
    residual_squares: float | None = None
    variance: float | None = None

    def criterion(self, source: Source, fit: BlockFit, ties: Ties) -> float:
        """Return the Bayesian information criterion; smaller is better.

        For normal data, N log RSS + f log N with N entries and f free parameters, which
        leaves out constants, as in the paper; otherwise -2 log-likelihood + f log N.
        """
        penalty = free_parameters(fit, ties) * log(prod(source.shape))
        if self.residual_squares is not None:
            return source.n_observed * log(self.residual_squares) + penalty
        return penalty - 2 * self.log_likelihood


def free_parameters(fit: BlockFit, ties: Ties) -> float:
    """Return the paper's count: the blocks, the labels and, if there are any, the degrees.

    Labels and degrees of tied modes count once.
    """
    found = float(prod(fit.sizes))
    for group in ties:
        nodes, size = len(fit.groupings[group[0]].labels), fit.sizes[group[0]]
        found += nodes * log(size)
        if fit.groupings[group[0]].weights is not None:
            found += nodes - size
    return found


def residual_squares(source: Source, fit: BlockFit) -> float:
    """Return the sum of squared residuals, at least what rounding of the data's own makes it."""
    rows, last = _last_rows(fit.core), len(fit.sizes) - 1
    explained = cluster_sums(source.sums(fit.groupings, [last])[last], fit.groupings[last])
    squared = [_squared(grouping) for grouping in fit.groupings]
    exposures = _total(source, squared)
    rss = source.squared_norm - 2 * float((explained * rows).sum())
    rss += float((exposures * rows**2).sum())
    return max(rss, np.finfo(np.float64).eps * source.squared_norm)


def _squared(grouping: Grouping) -> Grouping:
    if grouping.weights is None:
        return grouping
    return Grouping(labels=grouping.labels, size=grouping.size, weights=grouping.weights**2)


def _total(source: Source, groupings: list[Grouping]) -> Floats:
    """Return the exposure of every block, clusters of the last mode by blocks of the others."""
    last = len(groupings) - 1
    exposures = source.exposures(groupings, [last])[last]
    if len(exposures) == 1:
        return groupings[last].totals()[:, None] * exposures
    return cluster_sums(exposures, groupings[last])


def _last_rows(core: Floats) -> Floats:
    """Return the block means as rows of the last mode's clusters."""
    return np.asarray(unfold(core, core.ndim - 1))


def _total_mean(source: Source, fit: BlockFit) -> float:
    return float((_total(source, fit.groupings) * _last_rows(fit.core)).sum())


def _log_mean_of_counts(source: Source, fit: BlockFit) -> float:
    """Return the sum of entries times the logarithm of their mean."""
    plain = [g.unweighted() for g in fit.groupings]
    sums = source.sums(plain, range(len(plain)))
    blocks = cluster_sums(sums[len(plain) - 1], plain[-1])
    found = float(xlogy(blocks, _last_rows(fit.core)).sum())
    for mode, degrees in enumerate(fit.degrees):
        found += float(xlogy(sums[mode].sum(axis=1), degrees).sum())
    return found
