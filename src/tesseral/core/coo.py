"""Sparse tensors of any order: coordinates and values of the entries that are not zero."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.constraints import BOOLEAN, NONE, check_parameter, integer
from tesseral.core.ties import Ties, reorderings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CooTensor:
    """A tensor of which only some entries are stored; all others are zero.

    Attributes
    ----------
    coords : int array of shape (K, n)
        Indices of the stored entries, one column for each; none twice if made by
        :meth:`from_entries`.
    values : float64 array of shape (n,)
        Finite, or NaN where an entry is missing.
    shape : tuple of int
        Sizes (d_0, ..., d_{K-1}).

    Examples
    --------
    >>> tensor = CooTensor.from_entries([[0, 1, 1], [2, 0, 0]], [1.0, 2.0, 3.0], (2, 3))
    >>> tensor.to_dense()
    array([[0., 0., 1.],
           [5., 0., 0.]])
    """

    coords: NDArray[Any]
    values: NDArray[np.float64]
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number K of modes."""
        return len(self.shape)

    @classmethod
    def from_entries(
        cls, coords: ArrayLike, values: ArrayLike, shape: Sequence[int], *, where: str = "CooTensor"
    ) -> "CooTensor":
        """Return the tensor of some entries; those with the same indices are added.

        Parameters
        ----------
        coords : int array of shape (K, n)
            From 0.
        values : array of shape (n,)
            Real; NaN for an entry that is missing.
        shape : sequence of int
            Sizes of the K modes; their product must be below 2**63.
        where : str
            Name of the caller, for messages.

        Raises
        ------
        ShapeError, DtypeError, ParameterError
            If shapes or types do not fit, an index is out of range, or a value is infinite.
        """
        indices, entries = np.asarray(coords), np.asarray(values)
        _check_entries(where, indices, entries, tuple(shape))
        flat = np.ravel_multi_index(tuple(indices), tuple(shape))
        order = np.argsort(flat, kind="stable")
        flat = flat[order]
        first = np.flatnonzero(np.diff(flat, prepend=-1))
        ordered = entries[order].astype(np.float64)
        summed = np.add.reduceat(ordered, first) if len(first) else ordered
        kept = np.stack(np.unravel_index(flat[first], tuple(shape)))
        small = np.int32 if max(shape) < 2**31 else np.int64
        return cls(
            coords=kept.astype(small),
            values=summed,
            shape=tuple(int(size) for size in shape),
        )

    @classmethod
    def from_sparse(cls, given: Any, *, where: str = "CooTensor") -> "CooTensor":
        """Return a SciPy sparse matrix, or a COO array of the library ``sparse``, as this type.

        Raises
        ------
        DtypeError
            If it is neither.
        ParameterError
            If what it does not store is not zero.
        """
        if isinstance(given, CooTensor):
            return given
        if issparse(given):
            matrix: Any = given.tocoo()  # type: ignore[attr-defined]  # every format has it
            coords = (
                np.stack(matrix.coords)
                if hasattr(matrix, "coords")
                else (np.stack([matrix.row, matrix.col]))
            )
            return cls.from_entries(coords, matrix.data, matrix.shape, where=where)
        if not is_sparse(given):
            raise DtypeError(
                f"{where}: needs a SciPy sparse matrix, sparse.COO or CooTensor, "
                f"got {type(given).__name__}."
            )
        if given.fill_value != 0:
            raise ParameterError(
                f"{where}: what a sparse tensor does not store must be zero, "
                f"got fill_value={given.fill_value}."
            )
        return cls.from_entries(given.coords, given.data, given.shape, where=where)

    @classmethod
    def from_hyperedges(
        cls,
        edges: Iterable[Sequence[int]] | NDArray[Any],
        *,
        order: int = 3,
        n_nodes: int | None = None,
        counts: bool = False,
    ) -> "CooTensor":
        """Return the symmetric adjacency tensor of a hypergraph.

        An edge of ``order`` nodes sets the entries at all reorderings of its indices. A larger
        edge stands for all its subsets of ``order`` nodes, a smaller one for nothing; a node
        named twice in an edge counts once.

        Parameters
        ----------
        edges : iterable of sequences of int, or int array of shape (n, size)
            Nodes of each edge, from 0. An array, of edges of one size, is the quickest.
        order : int
            Number of modes, at least 2.
        n_nodes : int, optional
            Size of every mode; by default one more than the largest node.
        counts : bool
            Store how many edges hold the nodes, rather than 1 if any does.

        Raises
        ------
        ParameterError
            If an argument is not one of those allowed, or no edge is large enough.

        Examples
        --------
        >>> tensor = CooTensor.from_hyperedges([[0, 1, 2], [1, 0, 2, 3]], counts=True)
        >>> tensor.shape, len(tensor.values), tensor.to_dense()[0, 1, 2]
        ((4, 4, 4), 24, np.float64(2.0))
        """
        where = "CooTensor.from_hyperedges"
        check_parameter(where, "order", order, integer(2))
        check_parameter(where, "n_nodes", n_nodes, integer(1), NONE)
        check_parameter(where, "counts", counts, BOOLEAN)
        subsets = _subsets(where, _groups(edges), order)
        size = int(subsets.max()) + 1 if n_nodes is None else n_nodes
        once = cls.from_entries(subsets, np.ones(subsets.shape[1]), (size,) * order, where=where)
        values = once.values if counts else np.ones_like(once.values)
        axes_of = list(permutations(range(order)))
        return cls(
            coords=np.concatenate([once.coords[list(axes)] for axes in axes_of], axis=1),
            values=np.tile(values, len(axes_of)),
            shape=once.shape,
        )

    def to_dense(self) -> NDArray[np.float64]:
        """Return the whole array."""
        dense = np.zeros(self.shape)
        np.add.at(dense, tuple(self.coords), self.values)
        return dense

    def symmetrized(self, ties: Ties) -> "CooTensor":
        """Return the mean over all reorderings of tied modes; itself if it is symmetric."""
        if all(len(group) == 1 for group in ties) or self.is_symmetric(ties):
            return self
        axes_of = reorderings(ties)
        return CooTensor.from_entries(
            np.concatenate([self.coords[list(axes)] for axes in axes_of], axis=1),
            np.tile(self.values / len(axes_of), len(axes_of)),
            self.shape,
        )

    def is_symmetric(self, ties: Ties) -> bool:
        """Say whether exchanging any two tied modes leaves every entry as it is."""
        return all(
            self._swap_changes_nothing(group[0], mode) for group in ties for mode in group[1:]
        )

    def find_ties(self) -> Ties:
        """Return the groups of modes in which the tensor is exactly symmetric."""
        groups: list[list[int]] = []
        for mode in range(self.ndim):
            for group in groups:
                if self._swap_changes_nothing(group[0], mode):
                    group.append(mode)
                    break
            else:
                groups.append([mode])
        return tuple(tuple(group) for group in groups)

    def _swap_changes_nothing(self, first: int, second: int) -> bool:
        if self.shape[first] != self.shape[second]:
            return False
        axes = list(range(self.ndim))
        axes[first], axes[second] = second, first
        here, there = (
            np.ravel_multi_index(tuple(c), self.shape) for c in (self.coords, self.coords[axes])
        )
        one, other = np.argsort(here, kind="stable"), np.argsort(there, kind="stable")
        return bool(
            np.array_equal(here[one], there[other])
            and np.array_equal(self.values[one], self.values[other], equal_nan=True)
        )


def is_sparse(given: Any) -> bool:
    """Say whether something is a sparse tensor: ours, SciPy's, or of the library ``sparse``."""
    return (
        isinstance(given, CooTensor)
        or issparse(given)
        or (hasattr(given, "coords") and hasattr(given, "data") and hasattr(given, "fill_value"))
    )


def _groups(edges: Iterable[Sequence[int]] | NDArray[Any]) -> list[NDArray[Any]]:
    """Return the edges as arrays, those of one size in one array; nodes rising, none twice."""
    groups = []
    if isinstance(edges, np.ndarray) and edges.ndim == 2:
        rows = np.sort(edges, axis=1)
        repeating = (rows[:, 1:] == rows[:, :-1]).any(axis=1)
        groups, edges = [rows[~repeating]], rows[repeating]
    by_size: dict[int, list[NDArray[Any]]] = {}
    for edge in edges:
        nodes = np.unique(np.asarray(edge))
        by_size.setdefault(len(nodes), []).append(nodes)
    return groups + [np.stack(same) for same in by_size.values()]


def _subsets(where: str, groups: list[NDArray[Any]], order: int) -> NDArray[Any]:
    """Return all subsets of ``order`` nodes of every edge, as columns, rising."""
    found = []
    for edges in groups:
        if edges.shape[1] >= order and len(edges):
            chosen = np.array(list(combinations(range(edges.shape[1]), order)))
            found.append(edges[:, chosen].reshape(-1, order).T)
    if not found:
        raise ParameterError(f"{where}: no edge has the {order} nodes that order={order} asks for.")
    subsets = np.concatenate(found, axis=1)
    if not np.issubdtype(subsets.dtype, np.integer) or subsets.min() < 0:
        raise ParameterError(f"{where}: nodes must be integers from 0; number them first.")
    return subsets


def _check_entries(
    where: str, coords: NDArray[Any], values: NDArray[Any], shape: tuple[int, ...]
) -> None:
    if coords.ndim != 2 or coords.shape != (len(shape), *values.shape):
        raise ShapeError(
            f"{where}: a tensor of shape {shape} needs coordinates of shape ({len(shape)}, n) and "
            f"n values, got shapes {coords.shape} and {values.shape}."
        )
    if not np.issubdtype(coords.dtype, np.integer) or values.dtype.kind not in "biuf":
        raise DtypeError(
            f"{where}: needs integer coordinates and real values, "
            f"got {coords.dtype} and {values.dtype}."
        )
    if prod(shape) >= 2**63:
        raise ShapeError(f"{where}: a tensor of shape {shape} has too many entries to number.")
    sizes = np.array(shape)[:, None]
    if ((coords < 0) | (coords >= sizes)).any():
        raise ParameterError(f"{where}: a coordinate is outside the shape {shape}.")
    if np.isinf(values).any():
        raise ParameterError(f"{where}: the stored values contain infinity.")
