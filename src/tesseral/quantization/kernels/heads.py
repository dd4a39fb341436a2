"""Heads of queries, keys and values: what is done to them, and the backends that do it."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from tesseral.core.packing import packed_length, storage_bits
from tesseral.runtime.registry import Backend, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsProblem:
    """Heads to be multiplied by a matrix and, perhaps, turned into codes.

    Attributes
    ----------
    device : str
        Type of the device that holds them, as torch names it.
    dtype, working_dtype : str
        Types of the heads, and of matrix, clip and scales while they are computed.
    head_dim : int
        Elements of a head.
    gradient : bool
        Whether someone wants the gradient.
    """

    device: str
    dtype: str
    working_dtype: str
    head_dim: int
    gradient: bool = False


@cache
def heads_problem(
    dtype: torch.dtype, working_dtype: torch.dtype, device: str, head_dim: int, gradient: bool
) -> HeadsProblem:
    """Return the problem of heads of this type."""
    return HeadsProblem(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        working_dtype=str(working_dtype).removeprefix("torch."),
        head_dim=head_dim,
        gradient=gradient,
    )


class Places(NamedTuple):
    """Where the codes of heads of shape (batch, heads, tokens, head_dim) go.

    Attributes
    ----------
    data : uint8 tensor of shape (batch, heads, tokens, bytes)
    scale, offset : float16 tensors of shape (batch, heads, tokens, 1)
    """

    data: Tensor
    scale: Tensor
    offset: Tensor


def new_places(x: Tensor, bits: int) -> Places:
    """Return arrays for the codes of heads ``x``."""
    lead, width = x.shape[:-1], packed_length(x.shape[-1], storage_bits(bits))
    return Places(
        x.new_empty((*lead, width), dtype=torch.uint8),
        x.new_empty((*lead, 1), dtype=torch.float16),
        x.new_empty((*lead, 1), dtype=torch.float16),
    )


class HeadsBackend(Backend[HeadsProblem], Protocol):
    """A backend that transforms heads and turns them into codes."""

    def transform(self, x: Tensor, factor: Tensor) -> Tensor:
        """Return heads (..., head_dim) times a matrix, rounded to the type of ``x``."""
        ...

    def encode(
        self, x: Tensor, factor: Tensor | None, clip: Tensor, bits: int, places: Places
    ) -> None:
        """Write the asymmetric codes of heads to ``places``.

        Parameters
        ----------
        x : floating tensor of shape (batch, heads, tokens, head_dim)
        factor : tensor of shape (head_dim, head_dim), or None
            Multiplies each head first; the product is rounded to the type of ``x``.
        clip : tensor of shape (2,)
            Fractions of each head's minimum and maximum to keep.
        bits : int
            Width of the codes, 2 to 8; they are stored in the next of 2, 4 and 8.
        places : Places
        """
        ...


HEADS: Registry[HeadsProblem, HeadsBackend] = Registry(
    "heads",
    {
        "cpu": "tesseral.quantization.kernels.heads_cpu:CpuHeads",
        "portable": "tesseral.quantization.kernels.heads_portable:PortableHeads",
    },
    env="TESSERAL_HEADS_BACKEND",
)
