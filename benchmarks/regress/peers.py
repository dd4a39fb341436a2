"""Other ways to fit the mean of a tensor from covariates, as honest as they can be made.

Each takes the response, a list of covariates (None for a mode without), the rank and the family,
and returns the fitted mean. Where a mode has covariates, all use them if their model has a place
for them.
"""

from math import prod

import numpy as np

from tesseral.core import fold, hosvd, multi_mode_product, unfold
from tesseral.regress import TensorResponseRegressor


def ours(y, covariates, rank, family):
    """Tensor-response regression."""
    ranks = [
        min(r, d if x is None else x.shape[1])
        for r, d, x in zip(rank, y.shape, covariates, strict=True)
    ]
    model = TensorResponseRegressor(rank=ranks, family=family, tol=1e-6)
    return np.asarray(model.fit(y, covariates).predict())


def entrywise(y, covariates, rank, family):  # noqa: ARG001 -- it has no rank
    """Regress every fibre along the first mode with covariates on its own.

    Newton's method for all fibres at once; a ridge of 0.1 keeps separated ones finite.
    """
    mode = next(k for k, x in enumerate(covariates) if x is not None)
    x, responses = covariates[mode], unfold(y, mode)
    if family == "normal":
        coef = np.linalg.lstsq(x, responses, rcond=None)[0]
        return fold(x @ coef, mode, y.shape)
    coef = np.zeros((x.shape[1], responses.shape[1]))
    for _ in range(15):
        mean = 1 / (1 + np.exp(-(x @ coef)))
        weight = mean * (1 - mean)
        gradient = x.T @ (responses - mean) - 0.1 * coef
        information = np.einsum("ia,in,ib->nab", x, weight, x) + 0.1 * np.eye(x.shape[1])
        coef = coef + np.linalg.solve(information, gradient.T[:, :, None])[:, :, 0].T
    return fold(1 / (1 + np.exp(-(x @ coef))), mode, y.shape)


def hosvd_then_regress(y, covariates, rank, family):
    """Truncate the tensor to its rank, then project every mode on its covariates."""
    small = hosvd(y, rank).to_tensor()
    projections = [None if x is None else x @ np.linalg.pinv(x) for x in covariates]
    return _as_mean(multi_mode_product(small, projections), family)


def reduced_rank(y, covariates, rank, family):
    """Regress the unfolding along the first mode with covariates, at that mode's rank."""
    mode = next(k for k, x in enumerate(covariates) if x is not None)
    x, responses = covariates[mode], unfold(y, mode)
    basis, _ = np.linalg.qr(x)
    u, s, vh = np.linalg.svd(basis.T @ responses, full_matrices=False)
    r = min(rank[mode], prod(s.shape))
    return _as_mean(fold(basis @ (u[:, :r] * s[:r]) @ vh[:r], mode, y.shape), family)


def _as_mean(values, family):
    return np.clip(values, 0, 1) if family == "binomial" else values


PEERS = {
    "STD, ours": ours,
    "HOSVD, then regress": hosvd_then_regress,
    "reduced-rank regression": reduced_rank,
    "entry-wise GLM": entrywise,
}
