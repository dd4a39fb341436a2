"""The backends of the integer linear product, best first."""

from typing import Protocol

from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.problem import LinearProblem
from tesseral.runtime.registry import Backend, Registry


class LinearBackend(Backend[LinearProblem], Protocol):
    """A backend that multiplies rows of codes with a packed weight."""

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return the exact sums ``codes @ weight.codes().T``, shape (..., out_features).

        Parameters
        ----------
        codes : int8 tensor of shape (..., in_features)
        weight : PackedTensor of shape (out_features, in_features)
        """
        ...


BACKENDS: Registry[LinearProblem, LinearBackend] = Registry(
    "linear",
    {
        "cpu": "tesseral.quantization.kernels.cpu:CpuLinear",
        "portable": "tesseral.quantization.kernels.portable:PortableLinear",
    },
    env="TESSERAL_LINEAR_BACKEND",
)
