"""Linear products on the tensor cores of Turing and later, in CUDA C++."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.cuda.program import Variant
from tesseral.quantization.kernels.problem import LinearProblem, StoredWeight
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.cuda.program import target
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.triton import installed

CHIPS = (80, 75)
"""Architectures whose instructions there are kernels with, newest first."""

LONGEST = 2**16
"""Columns of a row for which 16 times any sum fits into 32 bits."""

_UNIT = 32
"""Rows of packed codes are whole pieces of 16 bytes."""

FEW = 16
"""Rows up to which a tile has 16."""


class CudaLinear:
    """Multiplies codes of 4 bits by ``mma`` of s4, wider ones by that of s8; exact.

    Turing, Ampere and Ada have both; Hopper and later emulate s4, which is slow there.
    """

    name = "cuda"
    _bits = 8

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support 4-bit weights with one scale a row, from compute capability 7.5 on."""
        reason = _refuse_device(problem.device) or _refuse(problem)
        return Verdict(False, reason) if reason else YES

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return ``codes @ weight.codes().T`` as int32, for codes of the widths that are read."""
        stored = StoredWeight(weight.data, weight.scale, None, 4, weight.length)
        (sums,) = multiply_all(codes, None, [stored], torch.int32, bits=self._bits)
        return sums

    def linears(
        self,
        codes: Tensor,
        scale: Tensor,
        weights: Sequence[StoredWeight],
        dtype: torch.dtype,
        memo: dict[str, Any],
    ) -> list[Tensor]:
        """Return the scaled products, one launch for each weight."""
        del memo
        return multiply_all(codes, scale, weights, dtype, bits=self._bits)


class CudaInt4Linear(CudaLinear):
    """The same for rows of 4 bits alone, packed in pairs: twice as many products a cycle."""

    name = "cuda-int4"
    _bits = 4

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support rows of at most 4 bits."""
        if problem.activation_bits > 4:
            return Verdict(False, f"reads rows of 4 bits, got {problem.activation_bits}")
        return super().supports(problem)


def multiply_all(
    codes: Tensor,
    scale: Tensor | None,
    weights: Sequence[StoredWeight],
    dtype: torch.dtype,
    *,
    bits: int,
    chip: int | None = None,
) -> list[Tensor]:
    """Return the products of rows of codes with some weights, of shape (..., outputs).

    Parameters
    ----------
    codes : int8 tensor of shape (..., length)
        Or float8 of ``codes / 512``, with a scale 512 times as large.
    scale : tensor of shape (..., 1), or None for sums
    weights : sequence of StoredWeight
    dtype : torch.dtype
    bits : {4, 8}
        How many of a code's bits are multiplied.
    chip : {75, 80}, optional
        Whose instructions to take; the newest that the device has by default.
    """
    from tesseral.quantization.kernels.cuda import launch

    if codes.dtype == torch.float8_e4m3fn:
        codes = (512.0 * codes.half()).to(torch.int8)
        scale = None if scale is None else scale / 512.0
    length = weights[0].length
    rows = codes.reshape(-1, length)
    variant = Variant(
        chip=chip or _chip("cuda"),
        codes=bits,
        output=str(dtype).removeprefix("torch."),
        few=len(rows) <= FEW,
    )
    rates = None if scale is None else scale.reshape(-1)
    ready = launch.arrange(rows, variant)
    lead = codes.shape[:-1]
    return [
        launch.multiply(ready, rates, weight, dtype, variant).view(*lead, len(weight.codes))
        for weight in weights
    ]


def _chip(device: str) -> int:
    found = cuda.capability(device)
    assert found is not None
    return next(chip for chip in CHIPS if chip <= 10 * found[0] + found[1])


def _refuse_device(device: str) -> str:
    """Return why kernels cannot run on a type of device, nothing if they can."""
    if not device.startswith("cuda"):
        return f"runs on CUDA devices, not on {device}"
    if not installed("torch"):
        return "needs torch: pip install 'tesseral[cuda]'"
    found = cuda.capability(device)
    if found is None:
        return "torch sees no CUDA device of NVIDIA"
    architecture = 10 * found[0] + found[1]
    if architecture < CHIPS[-1]:
        return "needs compute capability 7.5, {} has {}.{}".format(device, *found)
    if target(_chip(device), architecture) is None:
        return (
            "needs an NVRTC that compiles for compute capability {}.{}: "
            "pip install 'tesseral[cuda]'"
        ).format(*found)
    return ""


def _refuse(problem: LinearProblem) -> str:
    """Return why a product cannot run on any device, nothing if it can."""
    if problem.weight_bits != 4:
        return f"reads 4-bit weights, got {problem.weight_bits} bits"
    if problem.groups != 1:
        return f"takes one scale a row, got {problem.groups}"
    if problem.in_features % _UNIT or problem.in_features > LONGEST:
        return f"takes multiples of {_UNIT} columns up to {LONGEST}, got {problem.in_features}"
    return ""
