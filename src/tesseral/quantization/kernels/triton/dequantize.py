"""Launching the kernel that makes numbers of codes."""

import torch
import triton
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.triton.kernels.dequantize import dequantize_heads_kernel

_BLOCK = 32


def dequantize_heads(states: PackedTensor, dtype: torch.dtype) -> Tensor:
    """Return codes (batch, heads, tokens, size) as numbers, each rounded once.

    Parameters
    ----------
    states : PackedTensor
        Of 4 or 8 bits with one scale and one offset a row, as
        :func:`~tesseral.quantization.kvcodec.encode_heads` makes it; see :func:`takes`. Codes of a
        row are neighbours, scales and offsets lie alike.
    dtype : torch.dtype
        Type of the numbers.
    """
    batch, heads, tokens, size = states.shape
    data, scale, offset = states.data, states.scale, states.offset
    out = torch.empty(batch, heads, tokens, size, dtype=dtype, device=data.device)
    if out.numel():
        dequantize_heads_kernel[(triton.cdiv(tokens, _BLOCK), batch * heads)](
            data,
            *data.stride()[:3],
            scale,
            offset,
            *scale.stride()[:3],
            out,
            *out.stride()[:3],
            heads,
            tokens,
            size,
            states.bits,
            _BLOCK,
        )
    return out


def takes(states: PackedTensor) -> bool:
    """Whether :func:`dequantize_heads` takes such codes."""
    size = states.shape[-1]
    return (
        states.bits in (4, 8)
        and states.ndim == 4
        and states.offset is not None
        and states.scale.shape[-1] == 1
        and size & (size - 1) == 0
        and states.data.stride(-1) == 1
        and states.scale.stride() == states.offset.stride()
    )
