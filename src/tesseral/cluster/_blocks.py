"""What labels say about the data: mean rows of nodes and of clusters, degrees, block means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tesseral.cluster._source import Floats, Grouping, Source
from tesseral.cluster._sphere import unit_rows
from tesseral.core.unfold import fold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModeProfile:
    """One mode seen through the clusters of the others.

    Attributes
    ----------
    nodes : array of shape (d_k, m)
        Mean of each node's entries in each of the m blocks that the other modes make.
    clusters : array of shape (r_k, m)
        The same for each cluster.
    """

    nodes: Floats
    clusters: Floats


def mode_profiles(
    source: Source,
    groupings: Sequence[Grouping],
    degrees: Sequence[Floats] | None,
    modes: Sequence[int],
) -> dict[int, ModeProfile]:
    r"""Return the profiles of some modes.

    Where entries are missing, a mean over a block is the sum of what is observed over the
    sum of the degrees of the observed, :math:`\sum_j Y_{ij} / \sum_j \theta_j`; a block of
    which a node shows nothing is filled with its cluster's mean, scaled by how much longer the
    node's row is than the cluster's over the blocks that it does show.
    """
    sums = source.sums(groupings, modes)
    if source.complete:
        exposures = source.exposures(groupings, modes)
    else:
        exposures = source.exposures(weighted(groupings, degrees), modes)
    profiles = {}
    for mode in modes:
        own = None if source.complete or degrees is None else degrees[mode]
        profiles[mode] = _profile(sums[mode], exposures[mode], groupings[mode], own)
    return profiles


def weighted(groupings: Sequence[Grouping], weights: Sequence[Floats] | None) -> list[Grouping]:
    """Return the same clusters with a weight for each node."""
    if weights is None:
        return list(groupings)
    return [
        Grouping(labels=g.labels, size=g.size, weights=w)
        for g, w in zip(groupings, weights, strict=True)
    ]


def cluster_sums(rows: Floats, grouping: Grouping) -> Floats:
    """Sum rows over the clusters they belong to."""
    found = np.zeros((grouping.size, rows.shape[1]))
    scaled = rows if grouping.weights is None else rows * grouping.weights[:, None]
    np.add.at(found, grouping.labels, scaled)
    return found


def node_degrees(nodes: Floats, grouping: Grouping) -> Floats:
    """Return the lengths of rows, divided by their mean in each cluster.

    A cluster whose rows are all zero has degrees 1.
    """
    lengths = unit_rows(nodes)[1]
    return mean_one(lengths, grouping)


def mean_one(values: Floats, grouping: Grouping) -> Floats:
    """Divide non-negative values by their mean in each cluster; by nothing if that is zero."""
    counts = np.bincount(grouping.labels, minlength=grouping.size)
    means = np.bincount(grouping.labels, values, grouping.size) / np.maximum(counts, 1)
    empty = means == 0
    scaled = values / np.where(empty, 1.0, means)[grouping.labels]
    return np.where(empty[grouping.labels], 1.0, scaled)


def _profile(
    sums: Floats, exposures: Floats, grouping: Grouping, degrees: Floats | None
) -> ModeProfile:
    if len(exposures) == 1:  # complete: every node has the same
        nodes = _divide(sums, exposures)
        counts = Grouping(labels=grouping.labels, size=grouping.size).totals()[:, None]
        return ModeProfile(nodes=nodes, clusters=_divide(cluster_sums(nodes, grouping), counts))
    degrees = np.ones(len(sums)) if degrees is None else degrees
    by_degree = Grouping(labels=grouping.labels, size=grouping.size, weights=degrees)
    clusters = _divide(cluster_sums(sums, grouping), cluster_sums(exposures, by_degree))
    seen, nodes = exposures > 0, _divide(sums, exposures)
    like_cluster = clusters[grouping.labels]
    lengths = [np.linalg.norm(rows * seen, axis=1, keepdims=True) for rows in (nodes, like_cluster)]
    nodes = np.where(seen, nodes, _divide(*lengths) * like_cluster)
    return ModeProfile(nodes=nodes, clusters=clusters)


def _divide(sums: Floats, counts: Floats) -> Floats:
    return np.asarray(sums / np.where(counts > 0, counts, 1.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockFit:
    r"""The model :math:`S(z_0(i_0), \dots) \prod_k \theta_k(i_k)`, all that a fit finds.

    Attributes
    ----------
    groupings : list of Grouping
        The clusters z of each mode, each node weighted by its degree, of mean 1 in a cluster.
    core : array of shape (r_0, ..., r_{K-1})
        The block means S.
    """

    groupings: list[Grouping]
    core: Floats

    @property
    def degrees(self) -> list[Floats]:
        """The degrees of each mode's nodes."""
        return [np.ones(len(g.labels)) if g.weights is None else g.weights for g in self.groupings]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of clusters of the modes."""
        return tuple(grouping.size for grouping in self.groupings)


def fit_blocks(
    source: Source,
    groupings: Sequence[Grouping],
    degree_of: Sequence[int],
    profiles: Mapping[int, ModeProfile] | None = None,
) -> BlockFit:
    """Return block means and degrees for given labels, as the angle iteration sees them.

    ``degree_of`` says for each mode whose rows give its degrees. ``profiles`` are those of
    complete data under these labels, if known. Missing entries call for degrees to begin
    with, so there it takes several passes.
    """
    modes = sorted(set(degree_of))
    found = dict(profiles or {})
    degrees: list[Floats] | None = None
    for _ in range(1 if source.complete else 3):
        new = [mode for mode in modes if mode not in found]
        if new:
            found |= mode_profiles(source, groupings, degrees, new)
        degrees = [node_degrees(found[m].nodes, groupings[m]) for m in degree_of]
        core = _folded(found[modes[0]].clusters, modes[0], groupings)
        found = {}
    return BlockFit(groupings=weighted(groupings, degrees), core=core)


def fit_means(source: Source, groupings: Sequence[Grouping]) -> BlockFit:
    """Return block means for given labels, where nodes do not differ in degree."""
    plain = [grouping.unweighted() for grouping in groupings]
    last = len(plain) - 1
    clusters = mode_profiles(source, plain, None, [last])[last].clusters
    return BlockFit(groupings=plain, core=_folded(clusters, last, plain))


def _folded(clusters: Floats, mode: int, groupings: Sequence[Grouping]) -> Floats:
    """Return the block means as a tensor, from the rows of one mode's clusters."""
    return np.asarray(fold(clusters, mode, [grouping.size for grouping in groupings]))
