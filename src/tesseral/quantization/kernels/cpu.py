"""The integer product through the native CPU kernel."""

from torch import Tensor

from tesseral.core.int4 import linear_int4
from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.problem import LinearProblem
from tesseral.runtime.registry import YES, Verdict


class CpuLinear:
    """Multiplies packed 4-bit weights without unpacking them to memory."""

    name = "cpu"

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support 4-bit weights on the CPU."""
        if problem.device != "cpu":
            return Verdict(False, f"runs on the cpu, got device {problem.device!r}")
        if problem.weight_bits != 4:
            return Verdict(False, f"reads 4-bit weights, got {problem.weight_bits} bits")
        return YES

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return ``codes @ weight.codes().T`` as int32."""
        rows = codes.reshape(-1, weight.length).contiguous()
        sums: Tensor = linear_int4(rows, weight.data)
        return sums.reshape(*codes.shape[:-1], sums.shape[-1])
