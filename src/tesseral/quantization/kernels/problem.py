"""Integer linear products and the rows they read, described without arrays."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProblem:
    """``codes @ weight.T`` with integer sums.

    Attributes
    ----------
    device : str
        Type of the device that holds codes and weight, as torch names it.
    weight_bits : int
        Width in which the weight's codes are stored: 2, 4 or 8.
    activation_bits : int
        Width of the activation's codes, 2 to 8.
    in_features : int
        Length of a row.
    groups : int
        Scales that a row of the weight has.
    """

    device: str
    weight_bits: int
    activation_bits: int
    in_features: int
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsProblem:
    """Rows to be transformed and turned into codes.

    Attributes
    ----------
    device : str
        Type of the device that holds the rows, as torch names it.
    dtype : str
        Type of the rows.
    working_dtype : str
        Type in which transform and scale are computed.
    bits : int
        Width of the codes, 2 to 8.
    """

    device: str
    dtype: str
    working_dtype: str
    bits: int


@cache
def rows_problem(x: torch.dtype, clip: torch.dtype, device: str, bits: int) -> RowsProblem:
    """Return the problem of rows of this type, a clip of that one, and so many bits."""
    return RowsProblem(
        device=device,
        dtype=str(x).removeprefix("torch."),
        working_dtype=str(clip).removeprefix("torch."),
        bits=bits,
    )


class StoredWeight(NamedTuple):
    """What a layer stores: packed codes, their scales, and a bias or None."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    bits: int
    length: int

    @property
    def packed(self) -> PackedTensor:
        """The packed weight of shape (out_features, in_features)."""
        return PackedTensor(data=self.codes, scale=self.scale, bits=self.bits, length=self.length)
