"""From what a user gives to a regression stated in arrays."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tesseral._errors import ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace
from tesseral.core.constraints import check_parameter, integer, sequence_of
from tesseral.core.inputs import check_tensor
from tesseral.core.ties import check_tied, tie_modes
from tesseral.regress._blocks import symmetric_basis
from tesseral.regress._covariates import Basis, ModeCovariates, basis_of, parse_covariates
from tesseral.regress._families import family_named
from tesseral.regress._problem import Problem, cut
from tesseral.regress._response import (
    check_slices,
    labels_of,
    prepare_response,
    symmetric_data,
)
from tesseral.runtime.cpu import cpu_threads

_CHUNK_ENTRIES = 1 << 17
"""Entries of a chunk on the CPU: its temporaries stay in cache, and threads seldom wait.

Fits of 100^3 counts on two threads, to a gain of 1e-4: 0.43 s at 2^15, 0.26 s at 2^16, 0.18 s at
2^17; of 0 and 1: 0.24, 0.17 and 0.13 s.
"""

_CHUNK_ENTRIES_ELSEWHERE = 1 << 25
"""On an accelerator, where only memory limits a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """A checked regression.

    Attributes
    ----------
    problem : Problem
        Without a penalty.
    response : array of shape (d_0, ..., d_{K-1})
        As it was given; 0 where an entry is missing.
    tensor : array of that shape
        What is fitted: the response, averaged over entries that tied modes give one mean.
    observed : boolean array of that shape, or None
    weights, offset : arrays of that shape, or None
    covariates : list of K ModeCovariates
    bases : list of K Basis
    dims : tuple of K str
        Names of the modes.
    """

    problem: Problem
    response: Array
    tensor: Array
    observed: Array | None
    weights: Array | None
    offset: Array | None
    covariates: list[ModeCovariates]
    bases: list[Basis]
    dims: tuple[str, ...]


def prepare(
    where: str,
    response: Any,
    covariates: Any,
    *,
    family: str,
    symmetric: Any = False,
    dispersion: float | None = None,
    weights: Any = None,
    offset: Any = None,
    mask: Any = None,
    stacklevel: int = 2,
) -> Setup:
    """Check everything that a user gives and return it as a :class:`Setup`."""
    values, dims, row_names = labels_of(response)
    tensor, observed = check_tensor(values, where=where, mask=mask, allow_missing=True)
    shape = tuple(tensor.shape)
    groups = tie_modes(where, symmetric, len(shape))
    check_tied(where, "sizes", shape, groups)
    modes = parse_covariates(where, covariates, shape, dims=dims, rows=row_names)
    modes = _share(where, modes, groups)
    chosen = family_named(family)
    chosen.check(tensor, where)
    if chosen.name == "gamma":
        _check_positive(where, tensor, observed)
    recorded = observed
    tensor, observed, total, shift = prepare_response(
        where, tensor, observed, weights, offset, groups
    )
    check_slices(
        where,
        observed,
        recorded,
        [mode.matrix is not None for mode in modes],
        [mode.rows for mode in modes],
        stacklevel=stacklevel + 1,
    )
    bases = [
        basis_of(where, number, mode, tensor, stacklevel=stacklevel + 1)
        for number, mode in enumerate(modes)
    ]
    for group in groups:
        for mode in group:
            bases[mode] = bases[group[0]]
    seen = chosen.observations(tensor, total)
    response_given = tensor
    if any(len(group) > 1 for group in groups):
        counts = total
        tensor, observed, total = symmetric_data(where, tensor, counts, shift, groups)
        seen = chosen.pooled(seen, response_given, tensor, counts)
    problem = Problem(
        shape=shape,
        chunks=cut(tensor, total, shift, entries=_chunk_entries(tensor)),
        bases=tuple(basis.vectors for basis in bases),
        metrics=tuple(basis.metric for basis in bases),
        groups=groups,
        family=chosen,
        seen=seen,
        dispersion=dispersion,
    )
    return Setup(
        problem=problem,
        response=response_given,
        tensor=tensor,
        observed=observed,
        weights=total,
        offset=shift,
        covariates=modes,
        bases=bases,
        dims=dims or tuple(f"mode {mode}" for mode in range(len(shape))),
    )


def check_rank(where: str, problem: Problem, rank: Any) -> tuple[int, ...]:
    """Return the rank as a tuple; a single number counts for every mode.

    Raises
    ------
    ParameterError
        If it is above what covariates or the other ranks allow, or differs between tied modes.
    """
    one = integer(1)
    check_parameter(where, "rank", rank, one, sequence_of(one, length=problem.order))
    given = tuple(
        int(r) for r in ([rank] * problem.order if isinstance(rank, int | np.integer) else rank)
    )
    for mode, (wanted, width) in enumerate(zip(given, problem.widths, strict=True)):
        if wanted > width:
            what = "indices" if problem.bases[mode] is None else "independent covariates"
            raise ParameterError(
                f"{where}: rank {given} is too high: mode {mode} has {width} {what}, so its rank "
                f"can be at most {width}."
            )
        others = prod(given) // wanted
        if wanted > others:
            raise ParameterError(
                f"{where}: rank {given} is too high: the rank of mode {mode} can be at most "
                f"{others}, the product of the other ranks."
            )
    check_tied(where, "ranks", given, problem.groups)
    return given


def degrees_of_freedom(problem: Problem, rank: tuple[int, ...]) -> int:
    """Return the number of free parameters: of every subspace, and of the core.

    Tied modes have one subspace, and a core that is symmetric in them.
    """
    subspaces = sum(
        (problem.widths[group[0]] - rank[group[0]]) * rank[group[0]] for group in problem.groups
    )
    if all(len(group) == 1 for group in problem.groups):
        return subspaces + prod(rank)
    return subspaces + int(symmetric_basis(rank, problem.groups).shape[1])


@contextlib.contextmanager
def running(problem: Problem) -> Iterator[Problem]:
    """Give the problem threads for the time of a fit, one for each core it may use."""
    threads = min(cpu_threads(), len(problem.chunks))
    if (
        threads < 2
        or problem.run is not map
        or not isinstance(problem.chunks[0].tensor, np.ndarray)
    ):
        yield problem
        return
    # products within a chunk are small: threads of BLAS would only get into each other's way
    with ThreadPoolExecutor(threads) as pool, threadpool_limits(1, user_api="blas"):
        yield replace(problem, run=pool.map)


def _share(
    where: str, modes: list[ModeCovariates], groups: tuple[tuple[int, ...], ...]
) -> list[ModeCovariates]:
    """Return covariates that tied modes have in common; those of one count for all."""
    shared = list(modes)
    for group in groups:
        given = [modes[mode] for mode in group if modes[mode].matrix is not None]
        for other in given[1:]:
            assert given[0].matrix is not None
            assert other.matrix is not None
            if not np.array_equal(given[0].matrix, other.matrix):
                raise ShapeError(f"{where}: modes {group} are tied and need the same covariates.")
        for mode in group:
            shared[mode] = given[0] if given else modes[group[0]]
    return shared


def _check_positive(where: str, tensor: Array, observed: Array | None) -> None:
    xp = array_namespace(where, tensor)
    wrong = tensor <= 0 if observed is None else (tensor <= 0) & observed
    if xp.any(wrong):
        raise ParameterError(f"{where}: family 'gamma' needs positive values, got 0.")


def _chunk_entries(tensor: Array) -> int:
    return _CHUNK_ENTRIES if isinstance(tensor, np.ndarray) else _CHUNK_ENTRIES_ELSEWHERE
