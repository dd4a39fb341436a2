"""Whether data can support an answer: separation of clusters, signal to noise, and its regime."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, log
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from tesseral._errors import EvidenceWarning, TesseralWarning
from tesseral.cluster._blocks import mode_profiles
from tesseral.cluster._data import read
from tesseral.cluster._parts import Part, folds
from tesseral.cluster._source import Floats, Grouping, outer
from tesseral.cluster._sphere import unit_rows
from tesseral.core._arrays import to_numpy
from tesseral.core.random import Seed, as_generator
from tesseral.core.ties import reorderings

FOLDS = 3
"""Parts of the entries, each measured with labels that were found in the others."""

REGIMES = ("impossible", "hard", "polynomial time")
"""No method can find the clusters; none that is fast is known to; this one does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeDiagnosis:
    """What the fit says about one mode.

    Attributes
    ----------
    separation : float
        Smallest squared distance between the unit block rows of two clusters, less what the
        noise of the means makes it; infinite if there is one cluster.
    signal_to_noise : float
        That times the smallest squared length of a row, over the variance of the noise.
    gamma : float
        Exponent of the signal-to-noise ratio as a power of the number of nodes.
    regime : str
        One of :data:`REGIMES`.
    """

    separation: float
    signal_to_noise: float
    gamma: float
    regime: str


def diagnose(
    model: Any, X: Any, *, mask: Any = None, random_state: Seed = None
) -> tuple[ModeDiagnosis, ...]:
    r"""Return how well the clusters of each mode are separated, and which regime that is.

    Labels fit the noise too, so block means of the entries that labels were found in are too
    far apart, even where there is nothing to find. Here the entries are dealt into three parts;
    labels are found again without a part, and the means taken of that part: what separates them
    there is real. The medians of the three are returned. Labels of two thirds of the data are a
    little worse, which errs on the side of caution.

    The theory calls :math:`\Delta^2 / \sigma^2 = d^\gamma` the signal-to-noise ratio, with
    :math:`\Delta` the distance of normalised block rows. Below :math:`\gamma = -(K - 1)` no
    method recovers the clusters; below :math:`-K/2` none in polynomial time is known. The
    limits hold up to constants, and the ratio is that of the fit, so near a limit this is a
    hint and not a test.

    Parameters
    ----------
    model : fitted estimator of this package
        It is not changed.
    X : array or sparse tensor
        The data that it was fitted to.
    mask : boolean array, optional
        As in the fit.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Deals the entries.

    Returns
    -------
    tuple of K ModeDiagnosis

    Warns
    -----
    EvidenceWarning
        If a mode is not in the regime of polynomial time.

    References
    ----------
    Hu and Wang, arXiv:2201.07401, theorems 2 to 4 and figure 2.

    Examples
    --------
    >>> from tesseral.cluster import DegreeCorrectedTensorBlockModel
    >>> from tesseral.datasets import make_block_tensor
    >>> planted = make_block_tensor((30, 30, 30), 2, contrast=9, random_state=0)
    >>> model = DegreeCorrectedTensorBlockModel(2).fit(planted.tensor)
    >>> diagnose(model, planted.tensor, random_state=0)[0].regime
    'polynomial time'
    """
    check_is_fitted(model)
    rng = as_generator(random_state, "diagnose")
    parts = folds(X, mask, model.symmetric_, FOLDS, rng)
    measured = np.median([_measured(model, others, itself) for others, itself in parts], axis=0)
    nodes = [len(labels) for labels in model.labels_]
    found = tuple(
        _in_words(separation, ratio, n, len(nodes))
        for (separation, ratio), n in zip(measured.tolist(), nodes, strict=True)
    )
    poor = [mode for mode, entry in enumerate(found) if entry.regime != REGIMES[-1]]
    if poor:
        entry = found[poor[0]]
        warnings.warn(
            f"{type(model).__name__}: the clusters of mode {poor[0]} are separated by a "
            f"signal-to-noise ratio of {entry.signal_to_noise:.3g}, in the regime "
            f"{entry.regime!r}; the labels may be noise.",
            EvidenceWarning,
            stacklevel=2,
        )
    return found


def limits(order: int) -> tuple[float, float]:
    """Return the exponents of the statistical and of the computational limit."""
    return -(order - 1.0), -order / 2.0


def _measured(model: Any, others: Part, itself: Part) -> list[tuple[float, float]]:
    """Find labels in a part, and measure separation and signal to noise in another, by mode."""
    again = clone(model).set_params(n_clusters=model.n_clusters_, symmetric=model.symmetric_)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TesseralWarning)  # about a part of the data, not about X
        again.fit(others.tensor, **({} if others.mask is None else {"mask": others.mask}))
    thetas = [to_numpy(theta).astype(np.float64) for theta in again.degrees_]
    groupings = [
        Grouping(labels=z, size=r) for z, r in zip(again.labels_, again.n_clusters_, strict=True)
    ]
    source = read("diagnose", itself.tensor, itself.mask).source
    profile = mode_profiles(source, groupings, thetas, [0])[0]
    # of a sparse tensor, the entries of other parts are zeros here
    share = 1 / FOLDS if itself.mask is None else 1.0
    core = profile.clusters.reshape(again.n_clusters_) / share
    # entries that say the same count once
    entries = source.n_observed * share / len(reorderings(itself.ties))
    counts = [np.bincount(g.labels, minlength=g.size) for g in groupings]
    noise = _noise_variance(model, counts)
    return [_separation(core, counts, noise, entries, mode) for mode in range(core.ndim)]


def _separation(
    core: Floats, counts: Sequence[Any], noise: float, entries: float, mode: int
) -> tuple[float, float]:
    """Return the separation of the closest clusters of a mode, and the least signal to noise."""
    rows = np.moveaxis(core, mode, 0).reshape(core.shape[mode], -1)
    others = outer([count / count.sum() for k, count in enumerate(counts) if k != mode])
    # the variance of each block mean
    variances = noise / (entries * np.outer(counts[mode] / counts[mode].sum(), others))
    directions, lengths = unit_rows(rows)
    squares = np.maximum(lengths**2 - variances.sum(axis=1), 0.0)
    ratio, separation = inf, inf
    for a, b in combinations(range(len(rows)), 2):
        smaller = min(squares[a], squares[b])
        if smaller == 0:
            return 0.0, 0.0
        distance = float(((directions[a] - directions[b]) ** 2).sum())
        by_noise = sum(variances[k].sum() / lengths[k] ** 2 for k in (a, b))
        apart = max(distance - by_noise, 0.0)
        separation = min(separation, apart)
        ratio = min(ratio, apart * smaller / noise)
    return separation, ratio


def _in_words(separation: float, ratio: float, nodes: int, order: int) -> ModeDiagnosis:
    gamma = float(np.log(ratio) / log(nodes)) if ratio > 0 else -inf
    impossible, hard = limits(order)
    regime = REGIMES[int(gamma >= impossible) + int(gamma >= hard)]
    return ModeDiagnosis(
        separation=float(separation), signal_to_noise=float(ratio), gamma=gamma, regime=regime
    )


def _noise_variance(model: Any, counts: Sequence[Any]) -> float:
    """Return the variance of an entry around its mean, on average."""
    if model.noise_variance_ is not None:
        return max(float(model.noise_variance_), np.finfo(np.float64).tiny)
    shares = outer([count / count.sum() for count in counts])
    mean = float(to_numpy(model.core_).ravel() @ shares)
    return mean * (1 - mean) if model.family == "binomial" else mean
