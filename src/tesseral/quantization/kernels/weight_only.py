"""Packed weights under inputs that are not quantised, and the backends that multiply them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.runtime.registry import Backend, Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOnlyProblem:
    """Floating rows times packed weights, or times a transform before that.

    Attributes
    ----------
    device : str
        Type of the device that holds rows and weights, as torch names it.
    dtype, working_dtype : str
        Types of the layer's input and result, and of scales and transforms.
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
    working_dtype: str
    weight_bits: int
    in_features: int
    groups: int = 1
    gradient: bool = False


def problem_of(x: Tensor, weight: StoredWeight, dtype: torch.dtype) -> WeightOnlyProblem:
    """Return the problem of these rows and that weight, for a result of a type."""
    return _problem(
        dtype,
        weight.scale.dtype,
        x.device.type,
        weight.bits,
        weight.length,
        weight.scale.shape[-1],
        torch.is_grad_enabled() and x.requires_grad,
    )


@cache
def _problem(
    dtype: torch.dtype,
    working_dtype: torch.dtype,
    device: str,
    bits: int,
    length: int,
    groups: int,
    gradient: bool,
) -> WeightOnlyProblem:
    return WeightOnlyProblem(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        working_dtype=str(working_dtype).removeprefix("torch."),
        weight_bits=bits,
        in_features=length,
        groups=groups,
        gradient=gradient,
    )


class WeightOnlyBackend(Backend[WeightOnlyProblem], Protocol):
    """A backend that multiplies floating rows with packed weights.

    One that transforms rows on their way into the products of all layers that read them has a
    method ``multiply_rows``, too, which a :class:`~tesseral.quantization.linear.QuantizedInput`
    prefers.
    """

    def transform(self, x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
        """Return rows (..., in_features) times the Kronecker product of a pair of factors."""
        ...

    def linear(
        self, x: Tensor, weight: StoredWeight, dtype: torch.dtype, memo: dict[str, Any]
    ) -> Tensor:
        """Return ``x weight^T + bias`` as ``dtype``, summed in the type of the scales at least.

        Parameters
        ----------
        x : floating tensor of shape (..., in_features)
        weight : StoredWeight
        dtype : torch.dtype
        memo : dict
            The caller's, for what a backend wants to find again at the next call.
        """
        ...


WEIGHT_ONLY: Registry[WeightOnlyProblem, WeightOnlyBackend] = Registry(
    "weight-only",
    {
        "triton": "tesseral.quantization.kernels.triton.backend:TritonWeightOnly",
        "cpu": "tesseral.quantization.kernels.weight_only_cpu:CpuWeightOnly",
        "portable": "tesseral.quantization.kernels.weight_only_portable:PortableWeightOnly",
    },
    env="TESSERAL_WEIGHT_ONLY_BACKEND",
)
