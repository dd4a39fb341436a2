"""How far labels depend on single entries: fits of parts of the data, compared."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from tesseral.cluster._parts import part
from tesseral.cluster._source import Floats
from tesseral.cluster.metrics import clustering_error_rate
from tesseral.core.constraints import check_parameter, integer, real
from tesseral.core.random import Seed, spawn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stability:
    """How labels of one mode change when entries are left out.

    Attributes
    ----------
    consensus : array of shape (d, d)
        Share of the fits that put two nodes into one cluster.
    nodes : array of shape (d,)
        Mean share over the nodes of the same cluster: 1 for a node that always stays with them.
    error_rate : float
        Mean clustering error rate between the labels of the fits and those of the model.
    """

    consensus: Floats
    nodes: Floats
    error_rate: float


def stability(
    model: Any,
    X: Any,
    *,
    mask: Any = None,
    n_resamples: int = 20,
    share: float = 0.8,
    random_state: Seed = None,
) -> tuple[Stability, ...]:
    """Fit a model again to random parts of its data, and say how far labels agree.

    Parameters
    ----------
    model : fitted estimator of this package
        It is not changed; copies of it are fitted, with its numbers of clusters and ties.
    X : array or sparse tensor
        The data that the model was fitted to.
    mask : boolean array, optional
        As in the fit.
    n_resamples : int
        Number of fits.
    share : float
        Share of the entries that each fit sees; of tied modes, an entry and its reorderings
        stay or go together. Of a sparse tensor, entries go to zero.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of randomness.

    Returns
    -------
    tuple of K Stability

    Raises
    ------
    ParameterError
        If an option is not one of those allowed.

    References
    ----------
    Monti, Tamayo, Mesirov and Golub (2003), "Consensus clustering", Machine Learning 52.

    Examples
    --------
    >>> from tesseral.cluster import DegreeCorrectedTensorBlockModel
    >>> from tesseral.datasets import make_block_tensor
    >>> planted = make_block_tensor((30, 30), 2, contrast=9, noise=0.1, random_state=0)
    >>> model = DegreeCorrectedTensorBlockModel(2).fit(planted.tensor)
    >>> stability(model, planted.tensor, n_resamples=3, random_state=0)[0].error_rate
    0.0
    """
    check_is_fitted(model)
    check_parameter("stability", "n_resamples", n_resamples, integer(1))
    check_parameter("stability", "share", share, real(0, 1, exclude_low=True))
    again = clone(model).set_params(n_clusters=model.n_clusters_, symmetric=model.symmetric_)
    labels = []
    for rng in spawn(random_state, n_resamples):
        some = part(X, mask, model.symmetric_, share, rng)
        options = {} if some.mask is None else {"mask": some.mask}
        labels.append(again.fit(some.tensor, **options).labels_)
    return tuple(
        _compare(model.labels_[mode], [found[mode] for found in labels])
        for mode in range(len(model.labels_))
    )


def _compare(labels: NDArray[Any], found: list[NDArray[Any]]) -> Stability:
    consensus = np.mean([z[:, None] == z for z in found], axis=0)
    together = labels[:, None] == labels
    np.fill_diagonal(together, False)
    others = together.sum(axis=1)
    nodes = np.where(others > 0, (consensus * together).sum(axis=1) / np.maximum(others, 1), 1.0)
    rate = float(np.mean([clustering_error_rate(labels, z) for z in found]))
    return Stability(consensus=consensus, nodes=nodes, error_rate=rate)
