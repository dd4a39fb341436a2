"""Kronecker-factored transforms: learnable while calibrating, frozen afterwards.

Rows are multiplied from the right, ``x -> x P`` with ``P = P_1 (x) P_2``, and the weights
that read ``x`` are multiplied by the inverse transpose, ``W -> W P^-T``, so that their
product is unchanged (FlatQuant, section 4.1). Learnable and frozen forms are two types and
``freeze`` goes one way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, TypeAlias, cast

import torch
from torch import Tensor, nn

from tesseral.core.kronecker import kronecker_apply


@dataclass(frozen=True, slots=True)
class Kronecker:
    """A transform as plain matrices; ``None`` stands for the identity.

    Attributes
    ----------
    factors : tuple of (n_j, n_j) tensors or None
        The factors of ``P``.
    inverse_transposes : tuple of (n_j, n_j) tensors or None
        The factors of ``P^-T``.
    """

    factors: tuple[Tensor | None, ...]
    inverse_transposes: tuple[Tensor | None, ...]

    def apply(self, x: Tensor) -> Tensor:
        """Return ``x P`` along the last axis."""
        return apply_factors(x, self.factors)

    def apply_inverse_transpose(self, weight: Tensor) -> Tensor:
        """Return ``W P^-T``: what reads ``x P`` in place of ``x``."""
        return apply_factors(weight, self.inverse_transposes)

    def to(self, dtype: torch.dtype) -> Self:
        """Return the transform in another floating type."""
        return type(self)(_to(self.factors, dtype), _to(self.inverse_transposes, dtype))

    @classmethod
    def from_factors(cls, factors: Sequence[Tensor | None]) -> Self:
        """Build from matrices, inverting them in float64."""
        inverses = [
            None if f is None else torch.linalg.inv(f.double()).mT.to(f.dtype) for f in factors
        ]
        return cls(tuple(factors), tuple(inverses))


class CayleyMatrix(nn.Module):
    """An invertible matrix ``U diag(exp s) V^T`` with orthogonal U and V.

    ``U = cayley(A_u) U_0`` with ``A_u`` skew-symmetric and ``U_0`` a fixed orthogonal start,
    and V alike, so that every value of the parameters is invertible and the inverse
    transpose ``U diag(exp -s) V^T`` costs nothing more (FlatQuant, section 4.1 and
    appendix B.1).

    Parameters
    ----------
    start : (n, n) tensor
        Invertible matrix the transform starts at.
    """

    left_start: Tensor
    right_start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        n = start.shape[0]
        for name in ("left_start", "right_start"):
            self.register_buffer(name, torch.empty_like(start))
        self.left = nn.Parameter(torch.empty_like(start))
        self.right = nn.Parameter(torch.empty_like(start))
        self.log_scale = nn.Parameter(start.new_empty(n))
        self.restart(start)

    @torch.no_grad()
    def restart(self, start: Tensor) -> None:
        """Start at another matrix."""
        left, scale, right = _singular_parts(start.double())
        self.left_start.copy_(left)
        self.right_start.copy_(right)
        self.left.zero_()
        self.right.zero_()
        self.log_scale.copy_(scale.log())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the matrix and its inverse transpose."""
        return self.compose(*cayley(torch.stack([self.left, self.right])))

    def compose(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrix and its inverse transpose, given what turns U_0 and V_0."""
        left, right = left @ self.left_start, right @ self.right_start
        stretch = self.log_scale.exp()
        return (left * stretch) @ right.mT, (left / stretch) @ right.mT


class FreeMatrix(nn.Module):
    """A matrix whose entries are all free; its inverse is computed in float64.

    Parameters
    ----------
    start : (n, n) tensor
        Invertible matrix the transform starts at.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(start.clone())

    @torch.no_grad()
    def restart(self, start: Tensor) -> None:
        """Start at another matrix."""
        self.matrix.copy_(start)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the matrix and its inverse transpose."""
        inverse, _ = torch.linalg.inv_ex(self.matrix.double())
        return self.matrix, inverse.mT.to(self.matrix.dtype)


Matrix: TypeAlias = CayleyMatrix | FreeMatrix
MATRICES: Mapping[str, type[Matrix]] = {
    "cayley": CayleyMatrix,
    "free": FreeMatrix,
}
"""How a factor is learned, by ``QuantizationConfig.parametrisation``."""


_LARGEST_TOGETHER = 128  # rows of matrices that a CPU factors side by side


def cayley(raw: Tensor) -> Tensor:
    """Return the orthogonal ``(I + A)^-1 (I - A)`` for the skew part ``A`` of every matrix."""
    skew = raw - raw.mT
    eye = torch.eye(raw.shape[-1], dtype=raw.dtype, device=raw.device)
    return _solve(eye + skew, eye - skew)


def _solve(left: Tensor, right: Tensor) -> Tensor:
    """Solve for every matrix; on a CPU large ones one by one, since MKL errs for several at once.

    With two threads on an EPYC of Zen 3, torch 2.13 (MKL 2024.2) returned wrong solutions for two
    matrices of 160 rows, or said that pivots were not positive; of 128 rows all were right.
    """
    if left.device.type != "cpu" or left.ndim < 3 or left.shape[-1] <= _LARGEST_TOGETHER:
        together: Tensor = torch.linalg.solve_ex(left, right)[0]
        return together
    return torch.stack([_solve(a, b) for a, b in zip(left, right, strict=True)])


def _singular_parts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, s, V of a matrix; of an orthogonal one itself, ones and the identity."""
    eye = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    if torch.allclose(matrix @ matrix.mT, eye, atol=1e-5):
        return matrix, matrix.new_ones(matrix.shape[0]), eye
    left, scale, right = torch.linalg.svd(matrix)
    return left, scale, right.mT


class LearnableKronecker(nn.Module):
    """A Kronecker product of learnable matrices; ``None`` stays the identity.

    Parameters
    ----------
    starts : sequence of (n_j, n_j) tensor or None
        Where each factor starts.
    parametrisation : {"cayley", "free"}
        How each is learned; see :data:`MATRICES`.
    """

    def __init__(self, starts: Sequence[Tensor | None], parametrisation: str = "cayley") -> None:
        super().__init__()
        self.names = [None if s is None else f"factor{i}" for i, s in enumerate(starts)]
        for name, start in zip(self.names, starts, strict=True):
            if name is not None and start is not None:
                self.add_module(name, MATRICES[parametrisation](start))

    @property
    def matrices(self) -> list[Matrix | None]:
        """The learnable factors."""
        return [None if n is None else cast(Matrix, self.get_submodule(n)) for n in self.names]

    def restart(self, starts: Sequence[Tensor | None]) -> None:
        """Start at other matrices."""
        for matrix, start in zip(self.matrices, starts, strict=True):
            if matrix is not None and start is not None:
                matrix.restart(start)

    def forward(self) -> Kronecker:
        """Return the transform at the current parameters, with gradients."""
        return evaluate([self])[0]


def evaluate(transforms: Sequence[LearnableKronecker]) -> list[Kronecker]:
    """Return transforms at their current parameters, with gradients.

    The systems of equations of all matrices of one size are solved at once: on an accelerator
    the number of calls is what takes time.
    """
    matrices = [m for t in transforms for m in t.matrices if m is not None]
    turned: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for size in sorted({len(m.left) for m in matrices if isinstance(m, CayleyMatrix)}):
        alike = [m for m in matrices if isinstance(m, CayleyMatrix) and len(m.left) == size]
        turns = cayley(torch.stack([x for m in alike for x in (m.left, m.right)]))
        turned |= {m: (turns[2 * i], turns[2 * i + 1]) for i, m in enumerate(alike)}
    pairs = {m: m.compose(*turned[m]) if isinstance(m, CayleyMatrix) else m() for m in matrices}
    found = []
    for transform in transforms:
        each = [(None, None) if m is None else pairs[m] for m in transform.matrices]
        found.append(Kronecker(tuple(p for p, _ in each), tuple(q for _, q in each)))
    return found


def apply_factors(x: Tensor, factors: tuple[Tensor | None, ...]) -> Tensor:
    """Return ``x (factors[0] (x) factors[1] ...)`` along the last axis."""
    if all(factor is None for factor in factors):
        return x
    result: Tensor = kronecker_apply(x, factors)
    return result


def _to(factors: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(None if f is None else f.to(dtype) for f in factors)
