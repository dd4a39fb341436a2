"""The backends that encode heads of keys and values on accelerators, best first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.core.packing import storage_bits
from tesseral.quantization.numerics import asymmetric_codes, asymmetric_scale, row_range
from tesseral.runtime.registry import YES, Backend, Registry, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsProblem:
    """Rows of heads to be transformed and encoded.

    Attributes
    ----------
    device : str
        Type of the device that holds the rows, as torch names it.
    dtype, working_dtype : str
        Types of the rows, and of transform and scale.
    head_dim : int
        Length of a row.
    bits : int
        Width of the codes, 2 to 8.
    """

    device: str
    dtype: str
    working_dtype: str
    head_dim: int
    bits: int


class HeadsBackend(Backend[HeadsProblem], Protocol):
    """A backend that transforms rows of heads and packs them."""

    def encode(
        self, x: Tensor, factors: Sequence[Tensor | None], clip: Tensor, bits: int
    ) -> PackedTensor:
        """Return rows of ``x``, (batch, heads, tokens, head_dim), as asymmetric codes.

        Parameters
        ----------
        x : floating tensor of shape (batch, heads, tokens, head_dim)
        factors : sequence of one tensor of shape (head_dim, head_dim) or None
            Multiplies every row.
        clip : tensor of shape (2,)
            Fractions of each row's minimum and maximum to keep.
        bits : int
            Width of the codes.
        """
        ...


class PortableHeads:
    """Transforms and rounds heads operation by operation."""

    name = "portable"

    def supports(self, problem: HeadsProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def encode(
        self, x: Tensor, factors: Sequence[Tensor | None], clip: Tensor, bits: int
    ) -> PackedTensor:
        """Return codes with float16 scales and offsets."""
        (matrix,) = factors
        if matrix is not None:
            x = (x.to(matrix.dtype) @ matrix).to(x.dtype)
        return packed_heads(x, clip, bits)


def packed_heads(x: Tensor, clip: Tensor, bits: int) -> PackedTensor:
    """Return rows of heads as asymmetric codes with one scale and offset each."""
    x = x.to(clip.dtype)
    scale, offset = asymmetric_scale(*row_range(x, clip), bits)
    codes = asymmetric_codes(x, scale, offset, bits).to(torch.uint8)
    return PackedTensor.from_codes(codes, scale.half(), offset.half(), bits=storage_bits(bits))


HEADS: Registry[HeadsProblem, HeadsBackend] = Registry(
    "heads",
    {
        "triton": "tesseral.quantization.kernels.triton.backend:TritonHeads",
        "portable": "tesseral.quantization.kernels.heads:PortableHeads",
    },
    env="TESSERAL_HEADS_BACKEND",
)
