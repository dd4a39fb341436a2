"""Tensors drawn from the degree-corrected block model, with the truth beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tesseral._errors import ParameterError, ShapeError
from tesseral.core import as_generator, multi_mode_product
from tesseral.core.constraints import BOOLEAN, check_parameter, choice, real
from tesseral.core.random import Seed
from tesseral.core.ties import Ties, check_tied, per_mode, symmetrize, tie_modes
from tesseral.datasets import _planted as planted

_WHERE = "make_block_tensor"
DEGREES = choice("half-normal", "pareto", "equal")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockTensor:
    """A draw from the degree-corrected tensor block model, and what was planted.

    Attributes
    ----------
    tensor : array of shape (d_0, ..., d_{K-1})
        The observation: float64 (normal), uint8 of 0 and 1 (binomial), int64 (poisson).
    mean : float64 array of shape (d_0, ..., d_{K-1})
        Its expectation.
    labels : tuple of int array of shape (d_k,)
        Cluster of every node of each mode, from 0.
    degrees : tuple of float64 array of shape (d_k,)
        Degree of every node of each mode; mean 1 within each cluster.
    core : float64 array of shape (r_0, ..., r_{K-1})
        The block means.
    """

    tensor: NDArray[Any]
    mean: NDArray[Any]
    labels: tuple[NDArray[Any], ...]
    degrees: tuple[NDArray[Any], ...]
    core: NDArray[Any]


def make_block_tensor(
    shape: Sequence[int],
    n_clusters: int | Sequence[int],
    *,
    symmetric: bool | Sequence[Sequence[int]] = False,
    symmetric_noise: bool = False,
    family: str = "normal",
    contrast: float = 10.0,
    slice_norm: float = 0.5,
    core: ArrayLike | None = None,
    degrees: str = "half-normal",
    pareto_shape: float = 2.0,
    noise: float = 0.75,
    balanced: bool = True,
    random_state: Seed = None,
) -> BlockTensor:
    r"""Draw a tensor whose nodes fall into clusters on every mode and differ in degree.

    The mean is :math:`S(z_0(i_0), \dots, z_{K-1}(i_{K-1})) \prod_k \theta_k(i_k)`. Clusters
    are of equal size up to one node, in random order, unless asked otherwise.

    Parameters
    ----------
    shape : sequence of int
        Sizes d_0, ..., d_{K-1}, K >= 2.
    n_clusters : int or sequence of int
        Clusters r_k of each mode, at most d_k.
    symmetric : bool or sequence of sequence of int
        Modes that share labels and degrees: all, none, or groups such as ``[(0, 1)]``.
    symmetric_noise : bool
        Draw one value for all reorderings of the tied indices, as in an undirected network
        or hypergraph. Otherwise only the mean is symmetric, as in the paper's simulations.
    family : {"normal", "binomial", "poisson"}
        Of the observation around its mean.
    contrast : float, at least 1
        Ratio s_1 / s_2 of the two values in the core: s_1 on its diagonal and s_2 elsewhere
        or, when the modes have different numbers of clusters, s_1 where the indices sum to
        a multiple of the largest number. The paper takes
        :math:`1 + c_0 d^{\gamma/2}`, with :math:`c_0` = 100 (normal) or 50 (binomial) and
        :math:`\gamma` the exponent of its signal-to-noise ratio, -1.5 being the limit of
        polynomial time for K = 3.
    slice_norm : float
        Euclidean norm of the largest slice of the core along any mode.
    core : array of shape (r_0, ..., r_{K-1}), optional
        The core itself; ``contrast`` and ``slice_norm`` are then unused.
    degrees : {"half-normal", "pareto", "equal"}
        :math:`|N(0, 1/4)| + 1 - \sqrt{1/(2\pi)}`; Pareto of mean 1; or all 1. Rescaled to
        mean 1 within each cluster.
    pareto_shape : float, above 1
        Of the Pareto degrees; smaller means heavier tails.
    noise : float
        Standard deviation of normal noise.
    balanced : bool
        Make clusters of equal size; otherwise every node's cluster is drawn by itself, which is
        harder to recover. No cluster is empty.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of randomness; an integer gives the same tensor every time.

    Returns
    -------
    BlockTensor
        With ``family="binomial"`` means above 1, made by large degrees, are cut to 1.

    Raises
    ------
    ShapeError
        If sizes do not fit each other, or tied modes differ.
    ParameterError
        If another argument is not one of those allowed, if the core does not fit the
        family, or if the default core cannot tell so many clusters apart.

    References
    ----------
    Hu and Wang, arXiv:2201.07401: the model in equation (1), the simulations in its section
    on numerical studies.

    Examples
    --------
    >>> planted = make_block_tensor((30, 30, 30), 3, symmetric=True, random_state=0)
    >>> planted.tensor.shape, planted.labels[0].max()
    ((30, 30, 30), np.int64(2))
    """
    check_parameter(_WHERE, "shape", shape, planted.SIZES)
    sizes = list(shape)
    counts = per_mode(_WHERE, "n_clusters", n_clusters, len(sizes))
    ties = tie_modes(_WHERE, symmetric, len(sizes))
    check_tied(_WHERE, "sizes", sizes, ties)
    check_tied(_WHERE, "n_clusters", counts, ties)
    check_parameter(_WHERE, "symmetric_noise", symmetric_noise, BOOLEAN)
    check_parameter(_WHERE, "family", family, planted.FAMILY)
    check_parameter(_WHERE, "degrees", degrees, DEGREES)
    check_parameter(_WHERE, "pareto_shape", pareto_shape, real(1, exclude_low=True))
    check_parameter(_WHERE, "noise", noise, real(0))
    check_parameter(_WHERE, "balanced", balanced, BOOLEAN)
    if any(count > size for count, size in zip(counts, sizes, strict=True)):
        raise ShapeError(
            f"{_WHERE}: n_clusters={counts} asks for more clusters than shape={sizes} has nodes."
        )
    block_means = _two_valued_core(counts, contrast, slice_norm) if core is None else core
    block_means = _check_core(np.array(block_means, dtype=np.float64), counts, ties, family)

    rng = as_generator(random_state, _WHERE)
    labels, thetas = _draw_nodes(sizes, counts, ties, (degrees, pareto_shape, balanced), rng)
    memberships = [
        theta[:, None] * np.eye(count)[label]
        for theta, label, count in zip(thetas, labels, counts, strict=True)
    ]
    mean = multi_mode_product(block_means, memberships)
    if family == "binomial":
        mean = np.minimum(mean, 1.0)
    tensor = planted.observe(mean, family, noise, rng)
    if symmetric_noise:
        tensor = planted.mirror(tensor, ties)
    return BlockTensor(
        tensor=tensor, mean=mean, labels=tuple(labels), degrees=tuple(thetas), core=block_means
    )


def _two_valued_core(counts: list[int], contrast: float, slice_norm: float) -> NDArray[Any]:
    """Return the default core: high where clusters of all modes belong together."""
    check_parameter(_WHERE, "contrast", contrast, real(1))
    check_parameter(_WHERE, "slice_norm", slice_norm, real(0))
    indices = np.indices(counts)
    largest = max(counts)
    if min(counts) == largest:
        high = (indices == indices[0]).all(axis=0)
    elif largest <= 1 + sum(counts) - largest - (len(counts) - 1):
        high = indices.sum(axis=0) % largest == 0
    else:
        raise ParameterError(
            f"{_WHERE}: the default core cannot tell apart {largest} clusters of one mode when "
            f"n_clusters={counts}; give fewer, or the core itself."
        )
    core = np.where(high, contrast, 1.0)
    norms = [
        np.sqrt((core**2).sum(axis=tuple(m for m in range(core.ndim) if m != mode)))
        for mode in range(core.ndim)
    ]
    return np.asarray(core * (slice_norm / max(norm.max() for norm in norms)))


def _check_core(core: NDArray[Any], counts: list[int], ties: Ties, family: str) -> NDArray[Any]:
    if core.shape != tuple(counts):
        raise ShapeError(
            f"{_WHERE}: core must have shape {tuple(counts)}, as n_clusters says, got {core.shape}."
        )
    if not np.isfinite(core).all():
        raise ParameterError(f"{_WHERE}: core must be finite.")
    if not np.allclose(core, symmetrize(core, ties), rtol=1e-12, atol=0):
        raise ParameterError(f"{_WHERE}: the core is not symmetric in the tied modes {ties}.")
    low, high = core.min(), core.max()
    if (family == "poisson" and low < 0) or (family == "binomial" and (low < 0 or high > 1)):
        limits = "between 0 and 1" if family == "binomial" else "non-negative"
        raise ParameterError(
            f"{_WHERE}: with family={family!r} the core must be {limits}, "
            f"it runs from {low:.3g} to {high:.3g}."
        )
    return core


def _draw_nodes(
    sizes: list[int],
    counts: list[int],
    ties: Ties,
    nodes: tuple[str, float, bool],
    rng: np.random.Generator,
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return labels and degrees of every mode, drawn once for each group of tied modes."""
    degrees, pareto_shape, balanced = nodes
    labels: list[NDArray[Any]] = [np.empty(0)] * len(sizes)
    thetas: list[NDArray[Any]] = [np.empty(0)] * len(sizes)
    for group in ties:
        size, count = sizes[group[0]], counts[group[0]]
        label = np.arange(size) % count
        if not balanced:
            label[count:] = rng.integers(count, size=size - count)
        label = rng.permutation(label)
        theta = _draw_degrees(size, degrees, pareto_shape, rng)
        theta *= (np.bincount(label) / np.bincount(label, weights=theta))[label]
        for mode in group:
            labels[mode], thetas[mode] = label, theta
    return labels, thetas


def _draw_degrees(
    size: int, degrees: str, pareto_shape: float, rng: np.random.Generator
) -> NDArray[Any]:
    if degrees == "equal":
        return np.ones(size)
    if degrees == "half-normal":
        return np.asarray(np.abs(rng.normal(0.0, 0.5, size)) + 1.0 - 0.5 * np.sqrt(2.0 / np.pi))
    scale = (pareto_shape - 1.0) / pareto_shape
    return np.asarray((1.0 + rng.pareto(pareto_shape, size)) * scale)
