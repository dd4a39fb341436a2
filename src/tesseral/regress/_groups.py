"""Indices of a mode grouped by how covariates act on them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from tesseral.core import as_generator, unfold
from tesseral.core.constraints import check_parameter, integer
from tesseral.regress._information import host
from tesseral.regress._tucker_response import TensorResponseRegressor


def group_rows(
    model: TensorResponseRegressor, mode: int | str, n_groups: int, *, random_state: Any = 0
) -> NDArray[np.int64]:
    """Group the indices of a mode by the direction of their slices of the coefficients.

    Slices of one direction depend on the covariates of the other modes in the same way, be it
    strongly or weakly; k-means of directions, from 20 starts.

    Parameters
    ----------
    model : TensorResponseRegressor
        Fitted.
    mode : int or str
        Number or name of a mode; its covariates are grouped, or its indices where it has none.
    n_groups : int
        At most the number of these.
    random_state : seed

    Returns
    -------
    integer array of shape (p_mode,)
        Groups numbered from 0, the largest first.

    References
    ----------
    Xu, Hu and Wang, arXiv:1910.09499, group relations among nations by k-means of their factor.

    Examples
    --------
    >>> from tesseral.datasets import load_nations
    >>> nations = load_nations()
    >>> model = TensorResponseRegressor(
    ...     rank=4, family="binomial", constraint="barrier", max_theta=10
    ... ).fit(nations.tensor, [nations.covariates, nations.covariates, None])
    >>> group_rows(model, 2, 4).shape
    (56,)
    """
    number = model._mode(mode)
    factor = host(model.factors_[number])
    check_parameter("group_rows", "n_groups", n_groups, integer(1, len(factor)))
    # rows of factor times core: as far apart as the slices themselves, the others being orthonormal
    slices = factor @ unfold(host(model.core_), number)
    lengths = np.linalg.norm(slices, axis=1, keepdims=True)
    directions = slices / np.where(lengths > 0, lengths, 1.0)
    seed = int(as_generator(random_state, "group_rows").integers(2**31))
    labels = KMeans(n_groups, n_init=20, random_state=seed).fit_predict(directions)
    ranked = np.argsort(-np.bincount(labels, minlength=n_groups), kind="stable")
    return np.asarray(np.argsort(ranked)[labels], dtype=np.int64)
