"""The spectral start: nodes as rows of the tensor projected twice on leading directions."""

from collections.abc import Sequence
from math import prod
from typing import Protocol

from tesseral.cluster._source import Rows
from tesseral.core._arrays import Array, array_namespace, to_numpy
from tesseral.core.linalg import left_singular_vectors
from tesseral.core.unfold import fold, unfold


class Projectable(Protocol):
    """Data that can be multiplied by a narrow matrix along every mode but one."""

    def vectors(self, mode: int, rank: int) -> Array:
        """Return leading left singular vectors of an unfolding."""
        ...

    def project(self, matrices: Sequence[Array], modes: Sequence[int]) -> dict[int, Array]:
        """Return unfoldings along ``modes`` after products along all other modes."""
        ...


def projected_rows(
    source: Projectable, ranks: Sequence[int], factor_of: Sequence[int], modes: Sequence[int]
) -> Rows:
    """Return the rows of some unfoldings of the denoised tensor.

    Parameters
    ----------
    source : Projectable
        Of shape (d_0, ..., d_{K-1}).
    ranks : sequence of K int
        How many directions to keep of each mode, at most d_k.
    factor_of : sequence of K int
        The mode whose directions each mode uses: its own, or one that it is tied to.
    modes : sequence of int
        The modes whose rows are wanted.

    Returns
    -------
    mapping from mode to float64 array of shape (d_k, m_k)
        In coordinates of the other modes' directions, which leave lengths and angles as they
        are in the unfolding itself.

    References
    ----------
    Hu and Wang, arXiv:2201.07401, algorithm 1: leading singular vectors, projection on those
    of the other modes, singular vectors again, and projection on these.
    """
    read = sorted(set(factor_of))
    first = {mode: source.vectors(mode, ranks[mode]) for mode in read}
    once = source.project([first[mode] for mode in factor_of], read)
    second = {}
    for mode in read:
        rank = min(ranks[mode], *once[mode].shape)
        second[mode] = left_singular_vectors(once[mode], rank)
    one = read[-1]
    factors = [second[mode] for mode in factor_of]
    once_more = source.project(factors, [one])[one]
    # with every mode projected, the rows of any mode are its directions times the core
    shape = [factor.shape[1] for factor in factors]
    core = fold(factors[one].mT @ once_more, one, shape)
    return {
        mode: to_numpy(factors[mode] @ unfold(core, mode)).astype("float64", copy=False)
        for mode in modes
    }


def square_rows(tensor: Array, ranks: Sequence[int]) -> list[Array]:
    """Return rows of every mode after the square unfolding is cut to low rank.

    The first half of the modes runs along the rows of a matrix, the second along its columns.
    It is replaced by the nearest one of rank prod(r_k), over the half with fewer modes. Rows are
    given in coordinates of the other half's directions, which leave lengths and angles as they
    are.

    References
    ----------
    Hu and Wang, arXiv:2201.07401, on initialisation for sparse and Bernoulli data.
    """
    xp = array_namespace("square_rows", tensor)
    shape = tuple(tensor.shape)
    half = len(shape) // 2
    left, right = shape[:half], shape[half:]
    matrix = xp.reshape(tensor, (prod(left), prod(right)))
    rank = min(prod(ranks[:half]), prod(ranks[half:]), *matrix.shape)
    u = left_singular_vectors(matrix, rank)
    across = xp.matmul(matrix.mT, u)  # the right directions, each times its singular value
    along = u * xp.sqrt(xp.sum(across * across, axis=0))
    return [unfold(xp.reshape(along, (*left, rank)), k) for k in range(half)] + [
        unfold(xp.reshape(across, (*right, rank)), k) for k in range(len(right))
    ]
