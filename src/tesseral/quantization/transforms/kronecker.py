"""Kronecker-factored transforms: learnable while calibrating, frozen afterwards.

Rows are multiplied from the right, ``x -> x P`` with ``P = P_1 (x) P_2``, and the weights
that read ``x`` are multiplied by the inverse transpose, ``W -> W P^-T``, so that their
product is unchanged (FlatQuant, section 4.1). Learnable and frozen forms are two types and
``freeze`` goes one way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

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


class LearnableMatrix(nn.Module):
    """An invertible matrix ``U diag(exp s) V^T`` with orthogonal U and V.

    ``U = cayley(A_u) U_0`` with ``A_u`` skew-symmetric and ``U_0`` a fixed orthogonal start,
    and V alike, so that every value of the parameters is invertible and the inverse
    transpose ``U diag(exp -s) V^T`` costs nothing more (FlatQuant, section 4.1 and
    appendix B.1).

    Parameters
    ----------
    start : (n, n) tensor
        Orthogonal matrix the transform starts at.
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        n = start.shape[0]
        self.register_buffer("start", start.clone())
        self.left = nn.Parameter(torch.zeros(n, n, dtype=start.dtype))
        self.right = nn.Parameter(torch.zeros(n, n, dtype=start.dtype))
        self.log_scale = nn.Parameter(torch.zeros(n, dtype=start.dtype))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the matrix and its inverse transpose."""
        left = cayley(self.left) @ self.start
        right = cayley(self.right)
        stretch = self.log_scale.exp()
        return (left * stretch) @ right.mT, (left / stretch) @ right.mT


def cayley(raw: Tensor) -> Tensor:
    """Return the orthogonal ``(I + A)^-1 (I - A)`` for the skew part ``A`` of ``raw``."""
    skew = raw - raw.mT
    eye = torch.eye(raw.shape[0], dtype=raw.dtype, device=raw.device)
    orthogonal: Tensor = torch.linalg.solve(eye + skew, eye - skew)
    return orthogonal


class LearnableKronecker(nn.Module):
    """A Kronecker product of learnable matrices; ``None`` stays the identity."""

    def __init__(self, starts: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.names = [None if s is None else f"factor{i}" for i, s in enumerate(starts)]
        for name, start in zip(self.names, starts, strict=True):
            if name is not None and start is not None:
                self.add_module(name, LearnableMatrix(start))

    def forward(self) -> Kronecker:
        """Return the transform at the current parameters, with gradients."""
        pairs = [(None, None) if n is None else self.get_submodule(n)() for n in self.names]
        return Kronecker(tuple(p for p, _ in pairs), tuple(q for _, q in pairs))


def apply_factors(x: Tensor, factors: tuple[Tensor | None, ...]) -> Tensor:
    """Return ``x (factors[0] (x) factors[1] ...)`` along the last axis."""
    if all(factor is None for factor in factors):
        return x
    result: Tensor = kronecker_apply(x, factors)
    return result


def _to(factors: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    return tuple(None if f is None else f.to(dtype) for f in factors)
