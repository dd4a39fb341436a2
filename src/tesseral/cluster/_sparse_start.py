"""The start for many nodes: directions of how often two nodes meet, whoever else is there.

In a sparse tensor of very many nodes hardly any two nodes share the rest of an entry, so Gram
matrices of unfoldings see degrees only. Nodes do meet each other often: the marginal of a pair of
modes, the sum over all others, is a matrix that the planted clusters show in.
"""

from math import prod
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack
from scipy.sparse.linalg import svds

from tesseral.cluster._source import Floats
from tesseral.core.coo import CooTensor


def marginal_rows(
    tensor: CooTensor, mode: int, rank: int, missing: CooTensor | None = None
) -> Floats:
    r"""Return one row for each node of a mode: its leading directions among the marginals.

    The marginals of ``mode`` with each other mode stand side by side in a matrix M, scaled to
    :math:`(D + \bar{d})^{-1/2} M (D' + \bar{d}')^{-1/2}`, where D and D' hold the sums of
    magnitudes of rows and columns and the bars are their means.

    Parameters
    ----------
    tensor : CooTensor
        Of shape (d_0, ..., d_{K-1}).
    mode : int
    rank : int
        Number of columns, below every d_k.
    missing : CooTensor, optional
        Ones where entries are missing; a marginal is divided by the share of it that is seen.

    Returns
    -------
    array of shape (d_mode, rank)
        Left singular vectors times singular values.

    References
    ----------
    Qin and Rohe (2013), "Regularized spectral clustering under the degree-corrected stochastic
    blockmodel": the scaling. Ke, Shi and Xia, arXiv:1909.06503: the same problem in hypergraphs.
    """
    marginals = _marginals(tensor, mode)
    if missing is not None:
        marginals = marginals + marginals.multiply(_lost(missing, mode))
    scaled = _scaled(marginals)
    start = np.ones(min(scaled.shape))
    u, s, _ = svds(scaled, k=min(rank, min(scaled.shape) - 1), v0=start)
    return np.asarray(u * s)


def _marginals(tensor: CooTensor, mode: int) -> Any:
    """Return the marginals of a mode with each other mode, side by side."""
    rows = tensor.coords[mode]
    pieces = [
        csr_array((tensor.values, (rows, tensor.coords[k])), (tensor.shape[mode], tensor.shape[k]))
        for k in range(tensor.ndim)
        if k != mode
    ]
    return pieces[0] if len(pieces) == 1 else hstack(pieces, format="csr")


def _lost(missing: CooTensor, mode: int) -> Any:
    """Return, for every marginal of which something is seen, what is missing over what is seen."""
    counts = _marginals(missing, mode).tocsr()
    sizes = [missing.shape[k] for k in range(missing.ndim) if k != mode]
    per_column = np.repeat([prod(sizes) / size for size in sizes], sizes)
    whole = per_column[counts.indices]
    seen = whole - counts.data
    counts.data = np.divide(counts.data, seen, out=np.zeros(len(seen)), where=seen > 0.5)
    return counts


def _scaled(matrix: Any) -> Any:
    magnitudes = abs(matrix)
    factors = []
    for axis in (1, 0):
        sums = np.asarray(magnitudes.sum(axis=axis)).ravel()
        factors.append(1 / np.sqrt(sums + sums.mean()))
    scaled = matrix.multiply(factors[0][:, None]).tocsr()
    scaled.data *= factors[1][scaled.indices]
    return scaled
