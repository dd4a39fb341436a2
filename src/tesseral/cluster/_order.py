"""The numbering of clusters: largest first, so that the same clusters have the same numbers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral.cluster._blocks import BlockFit
from tesseral.cluster._source import Grouping
from tesseral.core.ties import Ties


def by_size(fit: BlockFit, ties: Ties) -> BlockFit:
    """Return a fit whose clusters are numbered by falling size; among equals, by first node.

    Tied modes keep equal labels, whose first mode is read.
    """
    groupings, core = list(fit.groupings), fit.core
    for group in ties:
        old_number = _old_numbers(groupings[group[0]])
        new_number = np.argsort(old_number)
        for mode in group:
            g = groupings[mode]
            labels = np.asarray(new_number[g.labels], dtype=np.intp)
            groupings[mode] = Grouping(labels=labels, size=g.size, weights=g.weights)
            core = np.take(core, old_number, axis=mode)
    return BlockFit(groupings=groupings, core=core)


def _old_numbers(grouping: Grouping) -> NDArray[Any]:
    """Return the present number of the largest cluster, of the second largest, and so on."""
    counts = np.bincount(grouping.labels, minlength=grouping.size)
    first = np.full(grouping.size, len(grouping.labels))
    np.minimum.at(first, grouping.labels, np.arange(len(grouping.labels)))
    return np.lexsort((first, -counts))
