"""What the room computes, done slowly and obviously, in float64."""

from functools import reduce

import numpy as np
from scipy import special, stats


def linear_predictor(coef, covariates):
    """Apply covariates to a coefficient tensor by an explicit Kronecker product."""
    matrices = [np.eye(p) if x is None else x for p, x in zip(coef.shape, covariates, strict=True)]
    theta = reduce(np.kron, matrices) @ coef.ravel()
    return theta.reshape([len(x) for x in matrices])


def entry_log_likelihood(family, y, eta, dispersion=1.0):
    """Return the log-likelihood of every entry, with all constants."""
    if family == "normal":
        return stats.norm.logpdf(y, eta, np.sqrt(dispersion))
    if family == "binomial":
        return stats.bernoulli.logpmf(y, special.expit(eta))
    mean = np.exp(eta)
    if family == "poisson":
        return stats.poisson.logpmf(y, mean)
    if family == "negative_binomial":
        return stats.nbinom.logpmf(y, 1 / dispersion, 1 / (1 + dispersion * mean))
    return stats.gamma.logpdf(y, 1 / dispersion, scale=dispersion * mean)


def draw(family, eta, rng, dispersion=0.5):
    """Draw a tensor with linear predictor ``eta``."""
    if family == "normal":
        return eta + rng.standard_normal(eta.shape)
    if family == "binomial":
        return (rng.random(eta.shape) < special.expit(eta)) * 1.0
    mean = np.exp(eta)
    if family == "poisson":
        return rng.poisson(mean) * 1.0
    if family == "negative_binomial":
        return rng.poisson(rng.gamma(1 / dispersion, dispersion * mean)) * 1.0
    return rng.gamma(1 / dispersion, dispersion * mean)
