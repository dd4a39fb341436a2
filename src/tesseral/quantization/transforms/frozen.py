"""Transforms as they are stored and applied at run time."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tesseral.core.kronecker import kronecker_apply


class FrozenKronecker(nn.Module):
    """Multiplies rows by a fixed Kronecker product of matrices.

    Parameters
    ----------
    sizes : sequence of int or None
        Size of each square factor; ``None`` for an identity, which stores nothing.
    dtype : torch.dtype
        Type of the factors; inputs are converted to it.
    """

    def __init__(self, sizes: Sequence[int | None], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.names = [None if n is None else f"factor{i}" for i, n in enumerate(sizes)]
        for name, n in zip(self.names, sizes, strict=True):
            if name is not None and n is not None:
                self.register_buffer(name, torch.eye(n, dtype=dtype))

    @classmethod
    def from_factors(
        cls, factors: Sequence[Tensor | None], dtype: torch.dtype
    ) -> "FrozenKronecker":
        """Build from the matrices themselves."""
        frozen = cls([None if f is None else f.shape[0] for f in factors], dtype)
        for name, factor in zip(frozen.names, factors, strict=True):
            if name is not None and factor is not None:
                frozen.get_buffer(name).copy_(factor)
        return frozen

    @property
    def factors(self) -> list[Tensor | None]:
        """The matrices; ``None`` for an identity."""
        held = self._buffers
        return [None if name is None else held[name] for name in self.names]

    @property
    def is_watched(self) -> bool:
        """Whether a hook waits for what this module returns."""
        return bool(self._forward_hooks or self._forward_pre_hooks)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rows of ``x`` times the product, in the type of the factors."""
        factors = self.factors
        present = next((f for f in factors if f is not None), None)
        if present is None:
            return x
        if len(factors) == 1:
            return x.to(present.dtype) @ present
        result: Tensor = kronecker_apply(x.to(present.dtype), factors)
        return result
