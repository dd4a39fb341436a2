r"""Improving labels by likelihood, where the angle iteration has brought them near.

Given the others' labels and degrees, each node's own degree has a best value for every cluster
it could join, and the node joins where that gives it the largest likelihood:

* normal: :math:`(\sum_B x_{iB} S_{aB})^2 / \sum_B f_{iB} S_{aB}^2` is what cluster a explains,
  with x the entries and f the ones summed over block B with the others' degrees, and their
  squares, as weights;
* counts: :math:`\sum_B x_{iB} \log S_{aB} - x_i \log \sum_B e_{iB} S_{aB}`, with x the plain
  sums, :math:`x_i` their total and e the ones summed with the others' degrees as weights.

* entries 0 and 1: see :mod:`tesseral.cluster._bernoulli`.

Labels are judged at their likeliest degrees and block means: the iteration stops when the
likelihood falls.
"""

from collections.abc import Mapping, Sequence
from math import ceil, prod

import numpy as np
from scipy.special import xlogy

from tesseral.cluster._angles import Assignment, refill, shared
from tesseral.cluster._bernoulli import climb
from tesseral.cluster._bernoulli import scores as scores_of_bits
from tesseral.cluster._blocks import BlockFit, cluster_sums, fit_blocks, mean_one, weighted
from tesseral.cluster._likelihood import Family
from tesseral.cluster._source import Floats, Grouping, Source
from tesseral.core.stopping import StoppingRule
from tesseral.core.ties import Ties

SHARES = (1.0, 0.3, 0.0)
"""How many of the nodes that would move do: all, and if that is no likelier, some or one."""

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
    filled = assignment.refilled
    progress = StoppingRule(max_iter=max_iter, tol=None).start(highest, labels)
    while not progress.done:
        preferred = _preferences(source, family, ties, best)
        tried = labels
        for share in SHARES:
            found, refilled = _moved(ties, best, preferred, share)
            if all(np.array_equal(g.labels, z) for g, z in zip(found, tried, strict=True)):
                continue
            tried = [grouping.labels for grouping in found]
            fit = likeliest_fit(source, family, degree_of, found)
            value = family.evaluate(source, fit).log_likelihood
            if value > highest:
                best, highest, labels, filled = fit, value, tried, refilled
                break
        # if none was likelier the labels stay, and labels that repeat end an iteration
        progress = progress.update(highest, labels)
    groupings = [grouping.unweighted() for grouping in best.groupings]
    return Assignment(groupings=groupings, result=progress.result, refilled=filled, fit=best)


def likeliest_fit(
    source: Source, family: Family, degree_of: Sequence[int], groupings: Sequence[Grouping]
) -> BlockFit:
    """Return the likeliest degrees and block means for given labels.

    They begin with the likelier of the angles' fit and of :func:`fit_likelihood`; for entries 0 and
    1, where the second is that of counts, they are then improved.
    """
    fits = [
        fit_likelihood(source, family, degree_of, groupings),
        fit_blocks(source, groupings, degree_of),
    ]
    values = [family.evaluate(source, fit).log_likelihood for fit in fits]
    best = fits[int(values[1] > values[0])]
    return climb(source, degree_of, best) if family.name == "binomial" else best


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


def _preferences(source: Source, family: Family, ties: Ties, fit: BlockFit) -> dict[int, Floats]:
    """Return how much likelier each node is in each cluster than in its own."""
    modes = [group[0] for group in ties]
    sums, exposures = _statistics(source, family, fit.groupings, modes)
    found = {}
    for mode in modes:
        if family.name == "binomial":
            scores = scores_of_bits(source, fit, mode)
        else:
            scores = _scores(family, sums[mode], exposures[mode], _rows(fit.core, mode))
        own = fit.groupings[mode].labels
        gains = scores - scores[np.arange(len(own)), own][:, None]
        gains[~sums[mode].any(axis=1)] = 0.0  # a node without signal stays
        found[mode] = gains
    return found


def _moved(
    ties: Ties, fit: BlockFit, preferred: Mapping[int, Floats], share: float
) -> tuple[list[Grouping], tuple[int, ...]]:
    """Let a share of the nodes that would move do so, those that gain most, and at least one."""
    found, refilled = {}, {}
    for mode, gains in preferred.items():
        own, size = fit.groupings[mode].labels, gains.shape[1]
        most = gains.max(axis=1)
        movers = np.flatnonzero(most > 0)
        movers = movers[np.argsort(-most[movers], kind="stable")]
        movers = movers[: max(ceil(share * len(movers)), 1)]
        labels = own.copy()
        labels[movers] = gains[movers].argmax(axis=1)
        refilled[mode] = refill(labels, most - gains.mean(axis=1), size)
        found[mode] = Grouping(labels=labels, size=size)
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
