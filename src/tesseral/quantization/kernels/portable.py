"""The integer product through torch's floating matrix product; runs on every device."""

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.problem import LinearProblem
from tesseral.runtime.registry import YES, Verdict

_EXACT_FLOAT32 = 2**24


class PortableLinear:
    """Multiplies codes as floating numbers, in a type that holds every sum exactly."""

    name = "portable"

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return ``codes @ weight.codes().T``; exact, as a floating tensor."""
        largest = 2 ** (weight.bits - 1) * 128 * weight.length
        dtype = torch.float32 if largest <= _EXACT_FLOAT32 else torch.float64
        return torch.nn.functional.linear(codes.to(dtype), weight.codes().to(dtype))
