"""Rows of floating numbers times packed weights: the problem, and the backends that solve it."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.runtime.registry import YES, Backend, Registry, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyProblem:
    """``x @ weight.T`` where only the weight is stored in codes.

    Attributes
    ----------
    device : str
        Type of the device that holds rows and weight, as torch names it.
    dtype : str
        Type of the result, which is that of the layer's input.
    weight_bits : int
        Width in which the weight's codes are stored: 2, 4 or 8.
    in_features : int
        Length of a row.
    groups : int
        Scales that a row of the weight has.
    gradient : bool
        Whether someone wants the gradient.
    """

    device: str
    dtype: str
    weight_bits: int
    in_features: int
    groups: int = 1
    gradient: bool = False


@cache
def weight_only_problem(
    device: str, dtype: torch.dtype, bits: int, length: int, groups: int, gradient: bool
) -> WeightOnlyProblem:
    """Return the problem of rows of this length and a weight of so many bits."""
    return WeightOnlyProblem(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        weight_bits=bits,
        in_features=length,
        groups=groups,
        gradient=gradient,
    )


class WeightOnlyBackend(Backend[WeightOnlyProblem], Protocol):
    """A backend that multiplies rows with packed weights."""

    def multiply(
        self, x: Tensor, weight: StoredWeight, dtype: torch.dtype, memo: dict[str, Any]
    ) -> Tensor:
        """Return ``x @ weight.T + bias``, as ``dtype``.

        Parameters
        ----------
        x : floating tensor of shape (..., in_features)
        weight : StoredWeight
        dtype : torch.dtype
            Type of the result; ``x`` may be rounded to it first where it has 16 bits.
        memo : dict
            The caller's, for what a backend wants to find again at the next call.
        """
        ...


class PortableWeightOnly:
    """Multiplies with the values that the codes stand for, made anew by torch at every call."""

    name = "portable"

    def supports(self, problem: WeightOnlyProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def multiply(
        self, x: Tensor, weight: StoredWeight, dtype: torch.dtype, memo: dict[str, Any]
    ) -> Tensor:
        """Return the product in the type of ``x``, rounded at the end."""
        del memo
        y = torch.nn.functional.linear(x, weight.packed.dequantize().to(x.dtype))
        if weight.bias is not None:
            y = y + weight.bias
        return y.to(dtype)


WEIGHT_ONLY: Registry[WeightOnlyProblem, WeightOnlyBackend] = Registry(
    "weight_only",
    {
        "triton": "tesseral.quantization.kernels.triton.backend:TritonWeightOnly",
        "portable": "tesseral.quantization.kernels.weight_only:PortableWeightOnly",
    },
    env="TESSERAL_WEIGHT_ONLY_BACKEND",
)
