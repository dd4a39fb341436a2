r"""Improving labels by likelihood, where the angle iteration has brought them near.

Given the others' labels and degrees, each node's own degree has a best value for every cluster
it could join, and the node joins where that gives it the largest likelihood:

* normal: :math:`(\sum_B x_{iB} S_{aB})^2 / \sum_B f_{iB} S_{aB}^2` is what cluster a explains,
  with x the entries and f the ones summed over block B with the others' degrees, and their
  squares, as weights;
* counts: :math:`\sum_B x_{iB} \log S_{aB} - x_i \log \sum_B e_{iB} S_{aB}`, with x the plain
  sums, :math:`x_i` their total and e the ones summed with the others' degrees as weights.

Entries 0 and 1 are assigned as counts, which they are nearly if ones are rare. What is kept is
judged by the likelihood of the family itself: the iteration stops when that falls.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from scipy.special import xlogy

from tesseral.cluster._angles import Assignment, refill, shared
from tesseral.cluster._blocks import BlockFit, cluster_sums, fit_blocks, mean_one, weighted
from tesseral.cluster._likelihood import Family
from tesseral.cluster._source import Floats, Grouping, Source
from tesseral.core.stopping import StoppingRule
from tesseral.core.ties import Ties

ALTERNATIONS = 3
"""How often degrees and block means are fitted in turn for given labels."""


def refine(
    source: Source,
    family: Family,
    ties: Ties,
    degree_of: Sequence[int],
    assignment: Assignment,
    max_iter: int,
) -> Assignment:
    """Return the labels of largest likelihood that the iteration meets.

    The history of the result is the log-likelihood. Parameters are those of
    :func:`tesseral.cluster._angles.iterate`, whose labels are the start.
    """
    best = likeliest_fit(source, family, degree_of, assignment.groupings)
    highest = family.evaluate(source, best).log_likelihood
    labels = [grouping.labels for grouping in best.groupings]
    progress = StoppingRule(max_iter=max_iter, tol=None).start(highest, labels)
    while not progress.done:
        found, refilled = _reassign(source, family, ties, best)
        fit = likeliest_fit(source, family, degree_of, found)
        value = family.evaluate(source, fit).log_likelihood
        if value < highest:
            # the labels stay, and labels that repeat are how an iteration arrives
            progress = progress.update(highest, labels)
            continue
        best, highest = fit, value
        labels = [grouping.labels for grouping in best.groupings]
        assignment = Assignment(groupings=found, result=assignment.result, refilled=refilled)
        progress = progress.update(highest, labels)
    return Assignment(
        groupings=assignment.groupings, result=progress.result, refilled=assignment.refilled
    )


def likeliest_fit(
    source: Source, family: Family, degree_of: Sequence[int], groupings: Sequence[Grouping]
) -> BlockFit:
    """Return, for given labels, the likelier of the angles' fit and of :func:`fit_likelihood`.

    The second is that of counts where entries are 0 and 1; if ones are not rare, as in a dense
    block, the first may be likelier.
    """
    fits = [
        fit_likelihood(source, family, degree_of, groupings),
        fit_blocks(source, groupings, degree_of),
    ]
    values = [family.evaluate(source, fit).log_likelihood for fit in fits]
    return fits[int(values[1] > values[0])]


def fit_likelihood(
    source: Source, family: Family, degree_of: Sequence[int], groupings: Sequence[Grouping]
) -> BlockFit:
    """Return block means and degrees that fit given labels, found in turn."""
    current = weighted(groupings, [np.ones(len(g.labels)) for g in groupings])
    modes = sorted(set(degree_of) | {0})
    core = _core(source, family, current)
    for _ in range(ALTERNATIONS):
        degrees = {}
        sums, exposures = _statistics(source, family, current, modes)
        for mode in modes:
            rows = _rows(core, mode)[current[mode].labels]
            by_ones = family.name != "normal"
            explained = sums[mode].sum(axis=1) if by_ones else (sums[mode] * rows).sum(axis=1)
            expected = (exposures[mode] * (rows if by_ones else rows**2)).sum(axis=1)
            ratio = np.maximum(explained / np.where(expected > 0, expected, 1.0), 0.0)
            degrees[mode] = mean_one(ratio, current[mode])
        current = weighted(groupings, [degrees[mode] for mode in degree_of])
        core = _core(source, family, current)
    return BlockFit(groupings=current, core=core)


def _reassign(
    source: Source, family: Family, ties: Ties, fit: BlockFit
) -> tuple[list[Grouping], tuple[int, ...]]:
    modes = [group[0] for group in ties]
    sums, exposures = _statistics(source, family, fit.groupings, modes)
    found, refilled = {}, {}
    for mode in modes:
        scores = _scores(family, sums[mode], exposures[mode], _rows(fit.core, mode))
        own = fit.groupings[mode].labels
        labels = scores.argmax(axis=1).astype(np.intp)
        silent = ~sums[mode].any(axis=1)
        labels[silent] = own[silent]
        refilled[mode] = refill(labels, scores.max(axis=1) - scores.mean(axis=1), scores.shape[1])
        found[mode] = Grouping(labels=labels, size=scores.shape[1])
    return shared(ties, found), tuple(shared(ties, refilled))


def _scores(family: Family, sums: Floats, exposures: Floats, clusters: Floats) -> Floats:
    """Return, for each node and cluster, the part of the log-likelihood that depends on it."""
    if family.name == "normal":
        fitted = np.maximum(sums @ clusters.T, 0.0) ** 2
        return np.asarray(fitted / np.maximum(exposures @ (clusters**2).T, np.finfo(float).tiny))
    # a block never seen in a cluster is unlikely, not impossible
    smallest = 1e-6 * clusters.max()
    log_rates = np.log(np.maximum(clusters, smallest))
    totals = sums.sum(axis=1, keepdims=True)
    return np.asarray(sums @ log_rates.T - xlogy(totals, exposures @ clusters.T))


def _statistics(
    source: Source, family: Family, groupings: Sequence[Grouping], modes: Sequence[int]
) -> tuple[dict[int, Floats], dict[int, Floats]]:
    """Return, for each node and block of the others, what the likelihood needs of the data."""
    plain = [grouping.unweighted() for grouping in groupings]
    power = 2 if family.name == "normal" else 1
    powers = [
        Grouping(labels=g.labels, size=g.size, weights=np.asarray(w) ** power)
        for g, w in zip(groupings, (g.weights for g in groupings), strict=True)
    ]
    sums = source.sums(groupings if family.name == "normal" else plain, modes)
    return dict(sums), dict(source.exposures(powers, modes))


def _core(source: Source, family: Family, groupings: Sequence[Grouping]) -> Floats:
    """Return the block means that fit given labels and degrees."""
    sums, exposures = _statistics(source, family, groupings, [0])
    first = groupings[0]
    assert first.weights is not None
    power = 2 if family.name == "normal" else 1
    own = Grouping(labels=first.labels, size=first.size, weights=first.weights**power)
    explained = cluster_sums(sums[0], first if power == 2 else first.unweighted())
    everywhere = np.broadcast_to(exposures[0], sums[0].shape)
    expected = cluster_sums(everywhere, own)
    core = explained / np.where(expected > 0, expected, 1.0)
    return core.reshape([grouping.size for grouping in groupings])


def _rows(core: Floats, mode: int) -> Floats:
    size = core.shape[mode]
    return np.moveaxis(core, mode, 0).reshape(size, prod(core.shape) // size)
