"""The spectral start: nodes as rows of the tensor projected twice on leading directions."""

from collections.abc import Sequence
from typing import Protocol

from tesseral.cluster._source import Rows
from tesseral.core._arrays import Array, to_numpy
from tesseral.core.linalg import left_singular_vectors


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
    twice = source.project([second[mode] for mode in factor_of], modes)
    rows = {}
    for mode in modes:
        factor = second[factor_of[mode]]
        rows[mode] = to_numpy(factor @ (factor.mT @ twice[mode])).astype("float64", copy=False)
    return rows
