"""Tensors explained by covariates on their modes, with the truth beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tesseral._errors import ShapeError
from tesseral.core import as_generator, multi_mode_product
from tesseral.core.constraints import BOOLEAN, Constraint, check_parameter, real
from tesseral.core.random import Seed
from tesseral.core.ties import SIZE, Ties, check_tied, per_mode, symmetrize, tie_modes
from tesseral.datasets import _planted as planted

_WHERE = "make_tensor_response"
_COUNT = Constraint(
    f"{SIZE.description} or None",
    lambda value: value is None or SIZE.accepts(value),
)
_MEANS: dict[str, Callable[[Any], Any]] = {"normal": np.copy, "binomial": expit, "poisson": np.exp}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorResponse:
    """A draw from the tensor-response model, and what was planted.

    Attributes
    ----------
    tensor : array of shape (d_0, ..., d_{K-1})
        The observation: float64 (normal), uint8 of 0 and 1 (binomial), int64 (poisson).
    covariates : tuple of (float64 array of shape (d_k, p_k) or None)
        ``None`` for a mode without covariates, where p_k is d_k.
    coef : float64 array of shape (p_0, ..., p_{K-1})
        The coefficient tensor B, of Tucker rank (r_0, ..., r_{K-1}).
    core : float64 array of shape (r_0, ..., r_{K-1})
    factors : tuple of float64 array of shape (p_k, r_k)
        With orthonormal columns.
    linear_predictor : float64 array of shape (d_0, ..., d_{K-1})
        Theta, the covariates applied to B.
    mean : float64 array of shape (d_0, ..., d_{K-1})
        Expectation of the observation.
    """

    tensor: NDArray[Any]
    covariates: tuple[NDArray[Any] | None, ...]
    coef: NDArray[Any]
    core: NDArray[Any]
    factors: tuple[NDArray[Any], ...]
    linear_predictor: NDArray[Any]
    mean: NDArray[Any]


def make_tensor_response(
    shape: Sequence[int],
    rank: int | Sequence[int],
    n_covariates: int | Sequence[int | None] | None,
    *,
    symmetric: bool | Sequence[Sequence[int]] = False,
    symmetric_noise: bool = False,
    family: str = "normal",
    signal: float = 3.0,
    noise: float = 1.0,
    random_state: Seed = None,
) -> TensorResponse:
    r"""Draw a tensor whose mean depends on covariates of its modes through a low-rank tensor.

    The linear predictor is :math:`\Theta = B \times_0 X_0 \dots \times_{K-1} X_{K-1}` with
    :math:`B = C \times_0 M_0 \dots \times_{K-1} M_{K-1}`, and the mean is
    :math:`\Theta`, :math:`1 / (1 + e^{-\Theta})` or :math:`e^\Theta`. Covariates are normal
    with variance 1 / d_k; the core is uniform before scaling.

    Parameters
    ----------
    shape : sequence of int
        Sizes d_0, ..., d_{K-1}, K >= 2.
    rank : int or sequence of int
        Tucker rank r_k of each mode, at most p_k and at most the product of the others.
    n_covariates : int, None, or sequence of these
        Covariates p_k of each mode; ``None`` for a mode without, whose X_k is the identity.
    symmetric : bool or sequence of sequence of int
        Modes that share covariates and factors, with a core symmetric in them: all, none, or
        groups such as ``[(0, 1)]``.
    symmetric_noise : bool
        Draw one value for all reorderings of the tied indices, as in an undirected network.
    family : {"normal", "binomial", "poisson"}
        Of the observation, with the identity, logistic and exponential mean.
    signal : float
        Largest absolute entry of Theta.
    noise : float
        Standard deviation of normal noise.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Source of randomness; an integer gives the same tensor every time.

    Raises
    ------
    ShapeError
        If sizes do not fit each other, or tied modes differ.
    ParameterError
        If another argument is not one of those allowed.

    References
    ----------
    Xu, Hu and Wang, arXiv:1910.09499: the model and, in its section on simulations, the
    distribution of covariates and coefficients.

    Examples
    --------
    >>> planted = make_tensor_response((20, 20, 30), 2, (5, 5, None), random_state=0)
    >>> planted.tensor.shape, planted.coef.shape
    ((20, 20, 30), (5, 5, 30))
    """
    check_parameter(_WHERE, "shape", shape, planted.SIZES)
    sizes = list(shape)
    ranks = per_mode(_WHERE, "rank", rank, len(sizes))
    counts = per_mode(_WHERE, "n_covariates", n_covariates, len(sizes), _COUNT)
    ties = tie_modes(_WHERE, symmetric, len(sizes))
    for name, values in (("sizes", sizes), ("rank", ranks), ("n_covariates", counts)):
        check_tied(_WHERE, name, values, ties)
    _check_ranks(ranks, [count or size for count, size in zip(counts, sizes, strict=True)])
    check_parameter(_WHERE, "symmetric_noise", symmetric_noise, BOOLEAN)
    check_parameter(_WHERE, "family", family, planted.FAMILY)
    check_parameter(_WHERE, "signal", signal, real(0))
    check_parameter(_WHERE, "noise", noise, real(0))

    rng = as_generator(random_state, _WHERE)
    covariates, factors = _draw_modes(sizes, ranks, counts, ties, rng)
    core = symmetrize(rng.uniform(-1.0, 1.0, ranks), ties)
    theta = multi_mode_product(multi_mode_product(core, factors), covariates)
    core *= signal / np.abs(theta).max()
    coef = multi_mode_product(core, factors)
    theta = multi_mode_product(coef, covariates)
    mean = _MEANS[family](theta)
    tensor = planted.observe(mean, family, noise, rng)
    if symmetric_noise:
        tensor = planted.mirror(tensor, ties)
    return TensorResponse(
        tensor=tensor,
        covariates=tuple(covariates),
        coef=coef,
        core=core,
        factors=tuple(factors),
        linear_predictor=theta,
        mean=mean,
    )


def _check_ranks(ranks: list[int], widths: list[int]) -> None:
    for mode, (rank, width) in enumerate(zip(ranks, widths, strict=True)):
        others = int(np.prod(ranks, dtype=np.int64)) // rank
        if rank > min(width, others):
            raise ShapeError(
                f"{_WHERE}: rank {rank} of mode {mode} must be at most its {width} covariates "
                f"and at most the product {others} of the other ranks."
            )


def _draw_modes(
    sizes: list[int],
    ranks: list[int],
    counts: list[int | None],
    ties: Ties,
    rng: np.random.Generator,
) -> tuple[list[NDArray[Any] | None], list[NDArray[Any]]]:
    """Return covariates and factors of every mode, drawn once for each group of tied modes."""
    covariates: list[NDArray[Any] | None] = [None] * len(sizes)
    factors: list[NDArray[Any]] = [np.empty(0)] * len(sizes)
    for group in ties:
        size, rank, count = sizes[group[0]], ranks[group[0]], counts[group[0]]
        x = None if count is None else rng.normal(0.0, size**-0.5, (size, count))
        factor, _ = np.linalg.qr(rng.uniform(-1.0, 1.0, (count or size, rank)))
        for mode in group:
            covariates[mode], factors[mode] = x, factor
    return covariates, factors
