"""Distributions of an entry given its linear predictor, on arrays of any framework.

A kernel is the part of an entry's log-likelihood that depends on its linear predictor eta, at
unit dispersion; ``total`` turns the sum of kernels into the log-likelihood. Scores are first
derivatives of the kernel, weights are minus its expected second derivatives.
"""

# ruff: noqa: ARG002 -- the families share signatures, and most need only some of the arguments

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import digamma, gammaln

from tesseral._errors import ParameterError
from tesseral.core._arrays import Array, Namespace, array_namespace, to_float, to_numpy
from tesseral.core.constraints import choice

FAMILIES = choice("normal", "binomial", "poisson", "negative_binomial", "gamma")


class Terms(NamedTuple):
    """Kernel, score and weight of every entry; ``weight`` is None where it is 1 everywhere."""

    kernel: Array
    score: Array
    weight: Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """What the log-likelihood needs of the data besides the kernels.

    Attributes
    ----------
    total_weight : float
        Sum of the weights of the observed entries, 1 for each if there are none.
    constant : float
        Weighted sum of what depends on neither eta nor dispersion.
    saturated : float
        Weighted sum of the kernels of a perfect fit; gamma only.
    counts, count_weights : arrays of shape (n,)
        The different values and the weight of each; negative binomial only.
    """

    total_weight: float
    constant: float = 0.0
    saturated: float = 0.0
    counts: NDArray[np.float64] | None = None
    count_weights: NDArray[np.float64] | None = None


class Family(ABC):
    """A distribution with its link; ``name`` and ``link`` say which."""

    name: ClassVar[str]
    link: ClassVar[str]
    has_dispersion: ClassVar[bool] = False
    separable: ClassVar[bool] = False
    """Whether a likelihood may grow for ever as eta goes to infinity."""
    zero_is_bound: ClassVar[bool] = False
    """Whether an entry of 0 says no more of eta than that it is small."""

    @abstractmethod
    def check(self, values: Array, where: str) -> None:
        """Raise ``ParameterError`` unless every entry is a possible value; missing ones are 0."""

    @abstractmethod
    def start(self, xp: Namespace, y: Array) -> Array:
        """Return a value on the scale of eta for each entry, to start from."""

    @abstractmethod
    def mean(self, xp: Namespace, eta: Array) -> Array:
        """Return the expectation of an entry: the inverse of the link."""

    @abstractmethod
    def link_of(self, xp: Namespace, mean: Array) -> Array:
        """Return eta for a mean: the link."""

    @abstractmethod
    def variance(self, xp: Namespace, mean: Array, dispersion: float) -> Array:
        """Return the variance of an entry of that mean."""

    @abstractmethod
    def terms(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Terms:
        """Return kernel, score and weight of every entry."""

    @abstractmethod
    def curvature(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Array:
        """Return minus the second derivative of the kernel, not its expectation."""

    @abstractmethod
    def draw(self, mean: NDArray[Any], dispersion: float, rng: np.random.Generator) -> NDArray[Any]:
        """Draw one observation for each mean."""

    def observations(self, y: Array, weights: Array | None) -> Observations:
        """Collect what :meth:`total` needs."""
        return Observations(total_weight=_total_weight(y, weights))

    def pooled(
        self, seen: Observations, given: Array, pooled: Array, weights: Array | None
    ) -> Observations:
        """Return what is needed where entries of one mean are replaced by their average.

        Kernels are linear in the data, so the average says as much about the mean.
        """
        return seen

    def total(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood from the weighted sum of kernels."""
        return kernels + seen.constant

    def profile_dispersion(self, kernels: float, seen: Observations) -> float:
        """Return the dispersion that maximises the likelihood; 1 where there is none."""
        return 1.0

    def held_out(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood at a dispersion that other data gave."""
        return self.total(kernels, seen, dispersion)


class Normal(Family):
    """Real values with a common variance, the dispersion; identity link."""

    name = "normal"
    link = "identity"
    has_dispersion = True

    def check(self, values: Array, where: str) -> None:
        """Accept anything finite."""

    def start(self, xp: Namespace, y: Array) -> Array:
        """Return the values themselves."""
        return y

    def mean(self, xp: Namespace, eta: Array) -> Array:
        """Return eta."""
        return eta

    def link_of(self, xp: Namespace, mean: Array) -> Array:
        """Return the mean."""
        return mean

    def variance(self, xp: Namespace, mean: Array, dispersion: float) -> Array:
        """Return the dispersion."""
        return xp.full_like(mean, dispersion)

    def terms(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Terms:
        """Return the terms of least squares."""
        residual = y - eta
        return Terms(-0.5 * residual * residual, residual, None)

    def curvature(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Array:
        """Return ones."""
        return xp.ones_like(eta)

    def draw(self, mean: NDArray[Any], dispersion: float, rng: np.random.Generator) -> NDArray[Any]:
        """Draw normal values."""
        return np.asarray(rng.normal(mean, math.sqrt(dispersion)))

    def total(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood with the variance profiled out."""
        variance = max(self.profile_dispersion(kernels, seen), np.finfo(float).tiny)
        return -0.5 * seen.total_weight * (math.log(2 * math.pi * variance) + 1)

    def held_out(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood at that variance."""
        logs = seen.total_weight * math.log(2 * math.pi * dispersion)
        return (kernels + seen.constant) / dispersion - 0.5 * logs

    def profile_dispersion(self, kernels: float, seen: Observations) -> float:
        """Return the mean squared residual."""
        return -2 * (kernels + seen.constant) / seen.total_weight

    def pooled(
        self, seen: Observations, given: Array, pooled: Array, weights: Array | None
    ) -> Observations:
        """Keep the squares that averaging loses."""
        xp = array_namespace("normal", given)
        squares = (given - pooled) ** 2
        lost = to_float(xp.sum(squares if weights is None else weights * squares, dtype=xp.float64))
        return replace(seen, constant=-0.5 * lost)


class Binomial(Family):
    """Values 0 and 1; logit link."""

    name = "binomial"
    link = "logit"
    separable = True

    def check(self, values: Array, where: str) -> None:
        """Accept 0 and 1."""
        xp = array_namespace(where, values)
        if not xp.all((values == 0) | (values == 1)):
            raise ParameterError(
                f"{where}: family 'binomial' needs a tensor of 0 and 1; "
                f"{_first(values, ~((values == 0) | (values == 1)))}."
            )

    def start(self, xp: Namespace, y: Array) -> Array:
        """Return -1 and 1."""
        return 2 * y - 1

    def mean(self, xp: Namespace, eta: Array) -> Array:
        """Return the logistic function, without overflow."""
        small = xp.exp(-xp.abs(eta))
        return xp.where(eta >= 0, xp.ones_like(small), small) / (1 + small)

    def link_of(self, xp: Namespace, mean: Array) -> Array:
        """Return the logarithm of the odds."""
        return xp.log(mean / (1 - mean))

    def variance(self, xp: Namespace, mean: Array, dispersion: float) -> Array:
        """Return mean (1 - mean)."""
        return mean * (1 - mean)

    def terms(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Terms:
        """Return the terms of logistic regression."""
        absolute = xp.abs(eta)
        small = xp.exp(-absolute)
        one_more = small + 1
        # mean = 1 / (1 + e) above one half, e / (1 + e) below; their product is the weight
        upper = 1 / one_more
        lower = small * upper
        weight = upper * lower
        # y eta - max(eta, 0) - log(1 + e)
        kernel = (y - 0.5) * eta
        absolute *= 0.5
        kernel -= absolute
        kernel -= xp.log(one_more)
        return Terms(kernel, y - xp.where(eta >= 0, upper, lower), weight)

    def curvature(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Array:
        """Return the weight: the link is canonical."""
        mean = self.mean(xp, eta)
        return mean * (1 - mean)

    def draw(self, mean: NDArray[Any], dispersion: float, rng: np.random.Generator) -> NDArray[Any]:
        """Draw 0 and 1."""
        return (rng.random(mean.shape) < mean).astype(np.float64)


class Poisson(Family):
    """Counts; logarithmic link."""

    name = "poisson"
    link = "log"
    separable = True
    zero_is_bound = True

    def check(self, values: Array, where: str) -> None:
        """Accept counts."""
        _check_counts(values, where, self.name)

    def start(self, xp: Namespace, y: Array) -> Array:
        """Return log(y + 1/2)."""
        return xp.log(y + 0.5)

    def mean(self, xp: Namespace, eta: Array) -> Array:
        """Return exp(eta)."""
        return xp.exp(eta)

    def link_of(self, xp: Namespace, mean: Array) -> Array:
        """Return the logarithm."""
        return xp.log(mean)

    def variance(self, xp: Namespace, mean: Array, dispersion: float) -> Array:
        """Return the mean."""
        return mean

    def terms(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Terms:
        """Return the terms of Poisson regression."""
        mean = xp.exp(eta)
        kernel = y * eta
        kernel -= mean
        return Terms(kernel, y - mean, mean)

    def curvature(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Array:
        """Return the weight: the link is canonical."""
        return xp.exp(eta)

    def draw(self, mean: NDArray[Any], dispersion: float, rng: np.random.Generator) -> NDArray[Any]:
        """Draw counts."""
        return rng.poisson(mean).astype(np.float64)

    def observations(self, y: Array, weights: Array | None) -> Observations:
        """Collect the logarithms of the factorials."""
        values, value_weights = count_table(y, weights)
        constant = -float(value_weights @ gammaln(values + 1))
        return Observations(total_weight=float(value_weights.sum()), constant=constant)


class NegativeBinomial(Poisson):
    """Counts of variance mean + dispersion * mean**2; logarithmic link."""

    name = "negative_binomial"
    has_dispersion = True

    def variance(self, xp: Namespace, mean: Array, dispersion: float) -> Array:
        """Return mean + dispersion * mean**2."""
        return mean + dispersion * mean * mean

    def terms(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Terms:
        """Return the terms of negative binomial regression of known dispersion."""
        shape = 1 / dispersion
        shifted = eta + math.log(dispersion)
        small = xp.exp(-xp.abs(shifted))
        share = xp.where(shifted >= 0, xp.ones_like(small), small) / (1 + small)
        softplus = 0.5 * (shifted + xp.abs(shifted)) + xp.log(1 + small)
        kernel = y * eta - (y + shape) * softplus
        return Terms(kernel, y - (y + shape) * share, share * shape)

    def curvature(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Array:
        """Return (y + 1 / dispersion) times the slope of the share of excess variance."""
        share = BINOMIAL.mean(xp, eta + math.log(dispersion))
        return (y + 1 / dispersion) * share * (1 - share)

    def draw(self, mean: NDArray[Any], dispersion: float, rng: np.random.Generator) -> NDArray[Any]:
        """Draw counts: Poisson, of a gamma-distributed mean."""
        return rng.poisson(rng.gamma(1 / dispersion, dispersion * mean)).astype(np.float64)

    def observations(self, y: Array, weights: Array | None) -> Observations:
        """Collect the different counts, whose terms change with the dispersion."""
        values, value_weights = count_table(y, weights)
        return Observations(
            total_weight=float(value_weights.sum()), counts=values, count_weights=value_weights
        )

    def total(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood at that dispersion."""
        assert seen.counts is not None
        assert seen.count_weights is not None
        shape = 1 / dispersion
        terms = gammaln(seen.counts + shape) - gammaln(shape) - gammaln(seen.counts + 1)
        return kernels + float(seen.count_weights @ (terms + seen.counts * math.log(dispersion)))


class Gamma(Family):
    """Positive values of variance dispersion * mean**2; logarithmic link."""

    name = "gamma"
    link = "log"
    has_dispersion = True

    def check(self, values: Array, where: str) -> None:
        """Accept positive values, and 0 for a missing one."""
        xp = array_namespace(where, values)
        if xp.any(values < 0):
            raise ParameterError(
                f"{where}: family 'gamma' needs positive values; {_first(values, values < 0)}."
            )

    def start(self, xp: Namespace, y: Array) -> Array:
        """Return log(y); 0 where y is missing and therefore 0."""
        return xp.log(xp.where(y > 0, y, xp.ones_like(y)))

    def mean(self, xp: Namespace, eta: Array) -> Array:
        """Return exp(eta)."""
        return xp.exp(eta)

    def link_of(self, xp: Namespace, mean: Array) -> Array:
        """Return the logarithm."""
        return xp.log(mean)

    def variance(self, xp: Namespace, mean: Array, dispersion: float) -> Array:
        """Return dispersion * mean**2."""
        return dispersion * mean * mean

    def terms(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Terms:
        """Return the terms at unit dispersion; another one only scales them."""
        ratio = y * xp.exp(-eta)
        return Terms(-eta - ratio, ratio - 1, None)

    def curvature(self, xp: Namespace, y: Array, eta: Array, dispersion: float) -> Array:
        """Return y over its mean."""
        return y * xp.exp(-eta)

    def draw(self, mean: NDArray[Any], dispersion: float, rng: np.random.Generator) -> NDArray[Any]:
        """Draw positive values."""
        return np.asarray(rng.gamma(1 / dispersion, dispersion * mean))

    def observations(self, y: Array, weights: Array | None) -> Observations:
        """Collect the sum of logarithms, and the kernels of a perfect fit."""
        xp = array_namespace("gamma", y)
        logs = self.start(xp, y)
        total = _total_weight(y, weights)
        sum_log = to_float(xp.sum(logs if weights is None else logs * weights, dtype=xp.float64))
        return Observations(total_weight=total, constant=-sum_log, saturated=-sum_log - total)

    def total(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood with the dispersion profiled out."""
        return self.held_out(kernels, seen, self.profile_dispersion(kernels, seen))

    def held_out(self, kernels: float, seen: Observations, dispersion: float) -> float:
        """Return the log-likelihood at that dispersion."""
        shape = 1 / dispersion
        normaliser = shape * math.log(shape) - float(gammaln(shape))
        # constant is minus the sum of log(y), which enters (shape - 1) times
        return shape * (kernels - seen.constant) + seen.constant + seen.total_weight * normaliser

    def profile_dispersion(self, kernels: float, seen: Observations) -> float:
        """Return 1 / shape, where log(shape) - digamma(shape) is half the mean deviance."""
        deviance = max((seen.saturated - kernels) / seen.total_weight, 1e-12)

        def gap(log_shape: float) -> float:
            return log_shape - float(digamma(math.exp(log_shape))) - deviance

        return math.exp(-brentq(gap, -30.0, 30.0, xtol=1e-12))


BINOMIAL = Binomial()
_TABLE: dict[str, Family] = {
    family.name: family for family in (Normal(), BINOMIAL, Poisson(), NegativeBinomial(), Gamma())
}


def family_named(name: str) -> Family:
    """Return the family of that name, one of ``FAMILIES``."""
    return _TABLE[name]


def count_table(y: Array, weights: Array | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the different counts in ``y`` and the weight of each."""
    values = to_numpy(y).reshape(-1)
    shares = None if weights is None else to_numpy(weights).reshape(-1)
    largest = float(values.max(initial=0.0))
    if largest < 1e5:
        summed = np.bincount(values.astype(np.int64), weights=shares)
        present = np.flatnonzero(summed)
        return present.astype(np.float64), summed[present].astype(np.float64)
    different, inverse = np.unique(values, return_inverse=True)
    summed = np.bincount(inverse.reshape(-1), weights=shares)
    return different.astype(np.float64), summed.astype(np.float64)


def _total_weight(y: Array, weights: Array | None) -> float:
    if weights is None:
        return float(math.prod(y.shape))
    xp = array_namespace("weights", weights)
    return to_float(xp.sum(weights, dtype=xp.float64))


def _check_counts(values: Array, where: str, name: str) -> None:
    xp = array_namespace(where, values)
    wrong = (values < 0) | (values != xp.floor(values))
    if xp.any(wrong):
        raise ParameterError(
            f"{where}: family {name!r} needs counts (0, 1, 2, ...); {_first(values, wrong)}."
        )


def _first(values: Array, wrong: Array) -> str:
    """Say which entry is the first wrong one."""
    flags = to_numpy(wrong)
    index = tuple(int(i) for i in np.argwhere(flags)[0])
    return f"entry {index} is {float(to_numpy(values)[index]):g}"
