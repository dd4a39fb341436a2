"""The backends of linear products and of the rows they read, best first."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.problem import LinearProblem, RowsProblem, StoredWeight
from tesseral.runtime.registry import Backend, Registry


class LinearBackend(Backend[LinearProblem], Protocol):
    """A backend that multiplies rows of codes with packed weights."""

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return the exact sums ``codes @ weight.codes().T``, shape (..., out_features).

        Parameters
        ----------
        codes : int8 tensor of shape (..., in_features)
        weight : PackedTensor of shape (out_features, in_features)
        """
        ...

    def linears(
        self,
        codes: Tensor,
        scale: Tensor,
        weights: Sequence[StoredWeight],
        dtype: torch.dtype,
        memo: dict[str, Any],
    ) -> list[Tensor]:
        """Return ``(sums * scale) * weight_scale + bias`` of every weight, as ``dtype``.

        Each step is rounded in the type of the scales. With several scales a row, sums of
        groups are scaled and added first, in an order of the backend's own.

        Parameters
        ----------
        codes : int8 tensor of shape (..., in_features)
            Or float8 (e4m3) where such a RowsBackend gave it, with a scale that fits.
        scale : floating tensor of shape (..., 1)
        weights : sequence of StoredWeight
            Layers that read these codes, alike in width and number of scales.
        dtype : torch.dtype
            Type of the outputs.
        memo : dict
            The caller's, for what a backend wants to find again at the next call.
        """
        ...


class RowsBackend(Backend[RowsProblem], Protocol):
    """A backend that transforms rows and turns them into codes."""

    def quantize(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None],
        clip: Tensor,
        bits: int,
        memo: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Return int8 codes of the shape of ``x`` and scales of shape (..., 1).

        Parameters
        ----------
        x : floating tensor of shape (..., n)
        factors : pair of square tensors or None
            The Kronecker factors that multiply every row; ``None`` for an identity.
        clip : tensor of shape (2,)
            Fractions of each row's minimum and maximum to keep.
        bits : int
            Width of the codes.
        memo : dict
            The caller's, for what a backend wants to find again at the next call.
        """
        ...


BACKENDS: Registry[LinearProblem, LinearBackend] = Registry(
    "linear",
    {
        "cpu": "tesseral.quantization.kernels.cpu:CpuLinear",
        "triton": "tesseral.quantization.kernels.triton.backend:TritonLinear",
        "triton-int8": "tesseral.quantization.kernels.triton.backend:TritonExactLinear",
        "cuda-int4": "tesseral.quantization.kernels.cuda.backend:CudaInt4Linear",
        "cuda": "tesseral.quantization.kernels.cuda.backend:CudaLinear",
        "portable": "tesseral.quantization.kernels.portable:PortableLinear",
    },
    env="TESSERAL_LINEAR_BACKEND",
)

ROWS: Registry[RowsProblem, RowsBackend] = Registry(
    "rows",
    {
        "cpu": "tesseral.quantization.kernels.cpu:CpuRows",
        "triton": "tesseral.quantization.kernels.triton.backend:TritonRows",
        "portable": "tesseral.quantization.kernels.portable:PortableRows",
    },
    env="TESSERAL_ROWS_BACKEND",
)
