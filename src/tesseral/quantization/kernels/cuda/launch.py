"""Launching the kernels: rows arranged for a product, and the product."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tesseral.quantization.kernels.cuda.program import Variant, build
from tesseral.quantization.kernels.problem import StoredWeight
from tesseral.runtime.cuda.driver import Kernel, load

_THREADS = 256
ALIGNMENT = 16


def arrange(codes: Tensor, variant: Variant) -> Tensor:
    """Return int8 codes (m, length) as the product reads them, bytes (m, length * bits / 8)."""
    m, length = codes.shape
    rows = torch.empty(m, length * variant.codes // 8, dtype=torch.uint8, device=codes.device)
    count = codes.numel() // 8
    if count:
        arguments = [_address(_aligned(codes)), _address(rows), ctypes.c_longlong(count)]
        _launch(codes, variant, "arrange", (-(-count // _THREADS), 1, 1), _THREADS, arguments)
    return rows


def multiply(
    rows: Tensor, scale: Tensor | None, weight: StoredWeight, dtype: torch.dtype, variant: Variant
) -> Tensor:
    """Return ``(sums * scale) * weight_scale + bias`` as ``dtype``, or the sums as int32.

    Parameters
    ----------
    rows : uint8 tensor of shape (m, length * bits / 8)
        As :func:`arrange` leaves them.
    scale : float32 tensor of m elements, or None for sums
    weight : StoredWeight
        Of one scale a row.
    dtype : torch.dtype
    variant : Variant
        Its output is that type.
    """
    m, outputs = len(rows), len(weight.codes)
    output = torch.empty(m, outputs, dtype=dtype, device=rows.device)
    if not output.numel():
        return output
    codes = _aligned(weight.codes)
    kept = [None if x is None else x.float().contiguous() for x in (scale, weight.scale)]
    bias = None if weight.bias is None else weight.bias.float().contiguous()
    sizes = (ctypes.c_int(m), ctypes.c_int(outputs), ctypes.c_int(weight.length))
    arguments = [*map(_address, (rows, kept[0], codes, kept[1], bias, output)), *sizes]
    grid = (-(-outputs // variant.columns), -(-m // variant.rows), 1)
    threads = 32 * variant.warps[0] * variant.warps[1]
    _launch(rows, variant, "linear", grid, threads, arguments)
    return output


def _launch(
    at: Tensor, variant: Variant, name: str, grid: tuple[int, int, int], threads: int,
    arguments: Sequence[Any],
) -> None:  # fmt: skip
    with torch.cuda.device(at.device):
        capability = torch.cuda.get_device_capability(at.device)
        kernel = _kernel(variant, 10 * capability[0] + capability[1], name, at.device.index or 0)
        kernel.launch(grid, threads, torch.cuda.current_stream().cuda_stream, arguments)


@cache
def _kernel(variant: Variant, architecture: int, name: str, device: int) -> Kernel:
    shared = variant.shared_bytes if name == "linear" else 0
    return load(build(variant, architecture), name, device, shared)


def _aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that can be read in pieces of 16 bytes: itself, or a copy."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
