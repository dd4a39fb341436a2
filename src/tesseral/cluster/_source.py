"""What the method asks of its data.

The method never sees entries. It asks for leading singular vectors, for products with narrow
matrices and for sums over clusters; each kind of data answers in its own way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tesseral.core import membership_matrix
from tesseral.core._arrays import Array, like
from tesseral.core.labels import Labels

Floats: TypeAlias = NDArray[np.float64]

Rows: TypeAlias = Mapping[int, Floats]
"""For some modes, one row for each node; columns run over the other modes in C order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grouping:
    """The clusters of one mode's nodes, and how much each node counts in its own.

    Attributes
    ----------
    labels : int array of shape (d,)
    size : int
        Number of clusters.
    weights : float64 array of shape (d,), or None
        ``None`` counts every node once.
    """

    labels: Labels
    size: int
    weights: Floats | None = None

    def unweighted(self) -> "Grouping":
        """Return the same clusters with every node counted once."""
        return Grouping(labels=self.labels, size=self.size)

    def totals(self) -> Floats:
        """Return the weight of each cluster."""
        return np.bincount(self.labels, self.weights, self.size).astype(np.float64)

    def matrix(self, reference: Array) -> Array:
        """Return the weighted memberships as a (d, size) array beside ``reference``."""
        members = membership_matrix(self.labels, self.size, reference)
        if self.weights is None:
            return members
        return members * like(self.weights, reference)[:, None]


class Source(Protocol):
    """Data in the form the method needs; weights of entries are 1 unless some are missing.

    Attributes
    ----------
    shape : tuple of int
    complete : bool
        Whether every entry is observed.
    n_observed : float
        Sum of the weights.
    squared_norm : float
        Weighted sum of squared entries.
    """

    shape: tuple[int, ...]
    complete: bool
    n_observed: float
    squared_norm: float

    def spectral_rows(
        self, ranks: Sequence[int], factor_of: Sequence[int], modes: Sequence[int]
    ) -> Rows:
        """Return denoised rows for ``modes``; mode k shares the factor of ``factor_of[k]``."""
        ...

    def square_rows(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return rows of the tensor after its square unfolding is cut to low rank."""
        ...

    def directions(self, ranks: Sequence[int], modes: Sequence[int]) -> Rows:
        """Return leading left singular vectors of the unfoldings along ``modes``."""
        ...

    def sums(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return, for each node of ``modes``, weighted sums of its entries over blocks."""
        ...

    def exposures(self, groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
        """Return the same sums of a tensor of ones where entries are observed."""
        ...

    def bernoulli(self, groupings: Sequence[Grouping], core: Floats) -> float:
        """Return the log-likelihood of entries 0 and 1 under a block model."""
        ...

    def bernoulli_slopes(
        self, groupings: Sequence[Grouping], core: Floats, modes: Sequence[int]
    ) -> tuple[Rows, Rows]:
        """Return sums, like :meth:`sums`, of its slopes and of the expected information.

        Both are by the logarithm of an entry's mean.
        """
        ...

    def bernoulli_trials(
        self, groupings: Sequence[Grouping], core: Floats, mode: int, degrees: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return the log-likelihood of each node of a mode in each cluster, if it moved there.

        ``degrees`` has one for each node and cluster, an array of shape (d, r); of that shape are
        also the slope and the expected information, by the logarithm of the degree, which follow.
        """
        ...


def outer(vectors: Sequence[Floats]) -> Floats:
    """Return the products of entries of all vectors, in C order."""
    return reduce(np.multiply.outer, vectors, np.ones(())).reshape(-1)


def complete_exposures(groupings: Sequence[Grouping], modes: Sequence[int]) -> Rows:
    """Return the exposures where no entry is missing: one row that serves every node."""
    totals = [grouping.totals() for grouping in groupings]
    return {mode: outer(totals[:mode] + totals[mode + 1 :])[None, :] for mode in modes}
