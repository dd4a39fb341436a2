"""What integer sums become in the output of a layer, step by step in torch."""

from collections.abc import Callable

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.problem import StoredWeight

Sums = Callable[[Tensor, PackedTensor], Tensor]


def scaled(
    linear: Sums, codes: Tensor, scale: Tensor, weight: StoredWeight, dtype: torch.dtype
) -> Tensor:
    """Return ``(sums * scale) * weight_scale + bias`` as ``dtype``.

    With several scales a row, codes and weight are multiplied as the values they stand for.

    Parameters
    ----------
    linear : callable
        Gives the integer sums of codes and a packed weight.
    codes, scale, weight, dtype
        As for :meth:`~tesseral.quantization.kernels.registry.LinearBackend.linears`.
    """
    if weight.scale.shape[-1] == 1:
        y = linear(codes, weight.packed).to(scale.dtype) * scale * weight.scale.mT
    else:
        dense = weight.packed.dequantize().to(scale.dtype)
        y = torch.nn.functional.linear(codes.to(scale.dtype) * scale, dense)
    if weight.bias is not None:
        y = y + weight.bias
    return y.to(dtype)
