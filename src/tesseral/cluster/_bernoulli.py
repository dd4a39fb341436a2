r"""Degrees, block means and clusters of nodes by the likelihood of entries 0 and 1.

A mean :math:`m = S \prod_k \theta_k` depends on the logarithm of each of its factors alike, with
slope :math:`(y - m) / (1 - m)` and expected information :math:`m / (1 - m)`. Summed over the
entries of a node, or of a block, these give its step by Fisher's scoring; a step is halved until
the likelihood rises.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tesseral._errors import ParameterError
from tesseral.cluster._blocks import BlockFit, cluster_sums, mean_one, weighted
from tesseral.cluster._source import Floats, Source
from tesseral.core.modeprod import multi_mode_product
from tesseral.core.unfold import fold, unfold

ROUNDS = 50
"""Most rounds of degrees and block means in turn."""

TOLERANCE = 1e-6
"""Relative rise of the log-likelihood in a round at which to stop."""

LONGEST = 1.0
"""Longest step of a logarithm."""

HALVINGS = 6
"""How often a step that lowers the likelihood is halved."""

STEPS = 6
"""Steps for the degree that a node would have in another cluster."""

Move = Callable[[float], BlockFit]


def climb(source: Source, degree_of: Sequence[int], start: BlockFit) -> BlockFit:
    """Return degrees and block means of large likelihood, for the labels of a fit.

    Modes with the same ``degree_of`` share their degrees.
    """
    fit, value = start, source.bernoulli(start.groupings, start.core)
    for _ in range(ROUNDS):
        before = value
        for plan in (_degrees_move, _core_move):
            fit, value = _ascend(source, fit, value, plan(source, degree_of, fit))
        if value - before <= TOLERANCE * abs(value):
            break
    return fit


def _ascend(source: Source, fit: BlockFit, value: float, move: Move) -> tuple[BlockFit, float]:
    """Return the first fit along a move that is likelier, or the one there is."""
    for halving in range(HALVINGS):
        found = move(0.5**halving)
        try:
            likelihood = source.bernoulli(found.groupings, found.core)
        except ParameterError:  # a mean too large for the power series of sparse data
            continue
        if likelihood > value:
            return found, likelihood
    return fit, value


def _degrees_move(source: Source, degree_of: Sequence[int], fit: BlockFit) -> Move:
    modes = sorted(set(degree_of))
    slopes, information = source.bernoulli_slopes(fit.groupings, fit.core, modes)
    steps = {k: _step(slopes[k].sum(axis=1), information[k].sum(axis=1)) for k in modes}
    degrees = fit.degrees

    def move(share: float) -> BlockFit:
        longer = {k: degrees[k] * np.exp(share * steps[k]) for k in modes}
        groupings = weighted(fit.groupings, [longer[k] for k in degree_of])
        return _normalised(replace(fit, groupings=groupings))

    return move


def _core_move(source: Source, degree_of: Sequence[int], fit: BlockFit) -> Move:
    mode = degree_of[0]
    found = source.bernoulli_slopes(fit.groupings, fit.core, [mode])
    plain = fit.groupings[mode].unweighted()
    slopes, information = (cluster_sums(rows[mode], plain) for rows in found)
    step = np.asarray(fold(_step(slopes, information), mode, fit.sizes))
    return lambda share: replace(fit, core=fit.core * np.exp(share * step))


def _step(slope: Floats, information: Floats) -> Floats:
    step = slope / np.maximum(information, np.finfo(np.float64).tiny)
    return np.asarray(np.clip(step, -LONGEST, LONGEST))


def _normalised(fit: BlockFit) -> BlockFit:
    """Return the same means of entries with degrees of mean 1 in each cluster."""
    plain = [grouping.unweighted() for grouping in fit.groupings]
    means = [
        g.totals() / np.maximum(p.totals(), 1) for g, p in zip(fit.groupings, plain, strict=True)
    ]
    core = multi_mode_product(fit.core, [np.diag(np.where(m > 0, m, 1.0)) for m in means])
    degrees = [mean_one(d, g) for d, g in zip(fit.degrees, plain, strict=True)]
    return BlockFit(groupings=weighted(plain, degrees), core=core)


def scores(source: Source, fit: BlockFit, mode: int) -> Floats:
    """Return the largest log-likelihood of the entries of each node of a mode in each cluster.

    A node's own degree in another cluster begins where that of a count is best.

    Returns
    -------
    array of shape (d, r)
    """
    plain = [grouping.unweighted() for grouping in fit.groupings]
    ones = source.sums(plain, [mode])[mode].sum(axis=1)
    exposures = source.exposures(fit.groupings, [mode])[mode]
    expected = exposures @ np.asarray(unfold(fit.core, mode)).T
    degrees = ones[:, None] / np.maximum(expected, np.finfo(np.float64).tiny)
    own = fit.groupings[mode]
    degrees[np.arange(len(degrees)), own.labels] = fit.degrees[mode]
    best, step = degrees, np.zeros(degrees.shape)
    highest = np.full(degrees.shape, -np.inf)
    for _ in range(STEPS):
        value, slope, information = source.bernoulli_trials(
            fit.groupings, fit.core, mode, best * np.exp(step)
        )
        better = value > highest
        best = np.where(better, best * np.exp(step), best)
        step = np.where(better, _step(slope, information), step / 2)
        highest = np.maximum(highest, value)
    return highest
