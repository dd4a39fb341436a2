"""Tucker decomposition: a small core tensor and one factor matrix for each mode."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

from tesseral._errors import ParameterError, ShapeError
from tesseral.core._arrays import Array, array_namespace, check_floating, to_float
from tesseral.core.constraints import check_parameter, choice, integer, sequence_of
from tesseral.core.linalg import SvdMethod, left_singular_vectors, orthonormality_error
from tesseral.core.modeprod import mode_product, multi_mode_product
from tesseral.core.random import Seed, as_generator
from tesseral.core.stopping import Result, StoppingRule
from tesseral.core.unfold import unfold

Start: TypeAlias = Literal["hosvd", "sequential"] | list[Array] | tuple[Array, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TuckerTensor:
    r"""A tensor as :math:`G \times_0 U_0 \times_1 U_1 \dots`.

    Attributes
    ----------
    core : array of shape (r_0, ..., r_{K-1})
        The core tensor G.
    factors : tuple of K arrays of shape (d_k, r_k)
        The factor matrices.

    Raises
    ------
    ShapeError
        If the factors do not fit the core.

    Examples
    --------
    >>> import numpy as np
    >>> line = TuckerTensor(core=np.ones((1, 1)), factors=(np.ones((2, 1)), np.ones((3, 1))))
    >>> line.shape, line.rank, line.norm()
    ((2, 3), (1, 1), 2.449489742783178)
    """

    core: Array
    factors: tuple[Array, ...]

    def __post_init__(self) -> None:
        shapes = [tuple(factor.shape) for factor in self.factors]
        if [shape[1:] for shape in shapes] != [(size,) for size in self.core.shape]:
            raise ShapeError(
                f"TuckerTensor: a core of shape {tuple(self.core.shape)} needs one factor of "
                f"shape (d_k, r_k) for each mode, got shapes {shapes}."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (d_0, ..., d_{K-1}) of the tensor it stands for."""
        return tuple(factor.shape[0] for factor in self.factors)

    @property
    def rank(self) -> tuple[int, ...]:
        """Shape (r_0, ..., r_{K-1}) of the core."""
        return tuple(self.core.shape)

    def to_tensor(self) -> Array:
        """Return the tensor as one dense array."""
        return multi_mode_product(self.core, self.factors)

    def norm(self) -> float:
        """Return the Frobenius norm of the tensor, without forming it."""
        grams = [factor.mT @ factor for factor in self.factors]
        xp = array_namespace("TuckerTensor", self.core)
        squared = to_float(xp.sum(self.core * multi_mode_product(self.core, grams)))
        return float(max(squared, 0.0) ** 0.5)


def hosvd(
    tensor: Array,
    rank: Sequence[int],
    *,
    sequential: bool = False,
    svd: SvdMethod = "auto",
    random_state: Seed = None,
) -> TuckerTensor:
    """Decompose a tensor by the leading singular vectors of its unfoldings.

    Parameters
    ----------
    tensor : floating array of shape (d_0, ..., d_{K-1})
        Finite, K >= 1.
    rank : sequence of K int
        Core size r_k of each mode: at most d_k, and at most the product of the others.
    sequential : bool
        Shrink the tensor by each factor before the next is found, the mode that shrinks
        most first: cheaper, and about as good.
    svd : {"auto", "exact", "randomized"}
        How singular vectors are found, see
        :func:`tesseral.core.linalg.left_singular_vectors`.
    random_state : seed
        For ``svd="randomized"``.

    Returns
    -------
    TuckerTensor
        With orthonormal factors; its squared error is at most K times the best possible.

    Raises
    ------
    DtypeError, ParameterError
        If ``tensor`` is not floating, or ``rank`` does not fit its shape.

    References
    ----------
    De Lathauwer, De Moor and Vandewalle (2000), SIAM J. Matrix Anal. Appl. 21, 1253-1278;
    sequential: Vannieuwenhoven, Vandebril and Meerbergen (2012), SIAM J. Sci. Comput. 34.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = np.arange(24.0).reshape(2, 3, 4)
    >>> hosvd(tensor, (2, 2, 2)).rank
    (2, 2, 2)
    """
    check_floating("hosvd", tensor)
    check_rank("hosvd", tuple(tensor.shape), rank)
    generator = as_generator(random_state, "hosvd")
    factors: dict[int, Array] = {}
    rest = tensor
    for mode in sorted(range(len(rank)), key=lambda mode: rank[mode] / tensor.shape[mode]):
        factor = left_singular_vectors(
            unfold(rest, mode), rank[mode], method=svd, random_state=generator
        )
        factors[mode] = factor
        if sequential:
            rest = mode_product(rest, factor, mode, transpose=True)
    ordered = tuple(factors[mode] for mode in range(len(rank)))
    core = rest if sequential else multi_mode_product(tensor, ordered, transpose=True)
    return TuckerTensor(core=core, factors=ordered)


def hooi(
    tensor: Array,
    rank: Sequence[int],
    *,
    start: Start = "hosvd",
    rule: StoppingRule | None = None,
    svd: SvdMethod = "auto",
    random_state: Seed = None,
) -> tuple[TuckerTensor, Result]:
    """Decompose a tensor by alternating least squares over orthonormal factors.

    Parameters
    ----------
    tensor, rank, svd, random_state
        As for :func:`hosvd`.
    start : {"hosvd", "sequential"} or sequence of K arrays of shape (d_k, r_k)
        Where to begin; given factors must have orthonormal columns.
    rule : StoppingRule, optional
        When to stop; the default is ``StoppingRule()``.

    Returns
    -------
    decomposition : TuckerTensor
        With orthonormal factors.
    result : Result
        How the iteration ended. Its history holds the fit, the share of the squared norm of
        ``tensor`` that the decomposition keeps, at the start and after each iteration; with
        ``svd="exact"`` it never falls.

    Raises
    ------
    DtypeError, ParameterError, ShapeError
        As for :func:`hosvd`; also if given factors do not fit or are not orthonormal.

    Warns
    -----
    ConvergenceWarning
        If the iteration stopped before its rule was met.

    References
    ----------
    De Lathauwer, De Moor and Vandewalle (2000), SIAM J. Matrix Anal. Appl. 21, 1324-1342;
    Kolda and Bader (2009), figure 4.4.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = np.einsum("i,j,k->ijk", np.arange(3.0), np.arange(4.0), np.arange(5.0))
    >>> decomposition, result = hooi(tensor, (1, 1, 1))
    >>> bool(np.allclose(decomposition.to_tensor(), tensor)), result.converged
    (True, True)
    """
    check_floating("hooi", tensor)
    check_rank("hooi", tuple(tensor.shape), rank)
    generator = as_generator(random_state, "hooi")
    factors = _start_factors(tensor, rank, start, svd, generator)
    core = multi_mode_product(tensor, factors, transpose=True)
    total = _squared_norm(tensor)
    progress = (rule or StoppingRule()).start(_fit(core, total))
    while not progress.done:
        for mode in range(len(factors)):
            projected = multi_mode_product(tensor, factors, skip=mode, transpose=True)
            factors[mode] = left_singular_vectors(
                unfold(projected, mode), rank[mode], method=svd, random_state=generator
            )
        # every mode but the last is projected already
        core = mode_product(projected, factors[-1], -1, transpose=True)
        progress = progress.update(_fit(core, total))
    progress.result.warn_unless_converged("hooi")
    return TuckerTensor(core=core, factors=tuple(factors)), progress.result


def check_rank(where: str, shape: tuple[int, ...], rank: Sequence[int]) -> None:
    """Raise ``ParameterError`` unless a tensor of ``shape`` can have a core of shape ``rank``."""
    check_parameter(where, "rank", rank, sequence_of(integer(1), length=len(shape)))
    for mode, (size, mode_rank) in enumerate(zip(shape, rank, strict=True)):
        most = min(size, prod(rank) // mode_rank)
        if mode_rank > most:
            raise ParameterError(
                f"{where}: rank {tuple(rank)} does not fit a tensor of shape {shape}: mode {mode} "
                f"can have at most rank {most}, the smaller of its size and of the product of "
                "the other ranks."
            )


def _start_factors(
    tensor: Array, rank: Sequence[int], start: Start, svd: SvdMethod, random_state: Seed
) -> list[Array]:
    if isinstance(start, str):
        check_parameter("hooi", "start", start, choice("hosvd", "sequential"))
        first = hosvd(
            tensor, rank, sequential=start == "sequential", svd=svd, random_state=random_state
        )
        return list(first.factors)
    expected = list(zip(tensor.shape, rank, strict=True))
    shapes = [tuple(factor.shape) for factor in start]
    if shapes != expected:
        raise ShapeError(f"hooi: start needs factors of shapes {expected}, got {shapes}.")
    tolerance = 100 * array_namespace("hooi", tensor, *start).finfo(tensor.dtype).eps ** 0.5
    worst = max(orthonormality_error(factor) for factor in start)
    if not worst <= tolerance:
        raise ParameterError(
            f"hooi: the start factors must have orthonormal columns; max |U'U - I| is {worst:.1e}."
        )
    return list(start)


def _squared_norm(tensor: Array) -> float:
    return to_float(array_namespace("hooi", tensor).sum(tensor * tensor))


def _fit(core: Array, total: float) -> float:
    """Return the share of the squared norm that orthonormal factors keep; 1 of nothing."""
    return _squared_norm(core) / total if total else 1.0
