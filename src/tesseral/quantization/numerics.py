"""Scales and rounding: one function each, for simulated and for stored quantisation alike.

A quantiser turns ``x`` into codes and back into ``scale * code (+ offset)``. The codes are
whole numbers in a floating tensor, and rounding passes gradients straight through, so the
simulation used in calibration and the codes that are stored come from the same lines.
"""

import torch
from torch import Tensor

# keeps the scale of a row of zeros from zero, and squares of it from underflow
_SMALLEST = 2.0**-60
# the smallest normal and the largest float16: cached scales are stored in that type
_TINY = 2.0**-14
_HUGE = 65504.0


def working_dtype(model: torch.dtype) -> torch.dtype:
    """Return the type of transforms and scales for a model's: float64 for float64, or float32."""
    return torch.float64 if model == torch.float64 else torch.float32


def round_through(x: Tensor) -> Tensor:
    """Round to the nearest integer; the gradient passes as if nothing happened."""
    return x + (x.round() - x).detach()


def symmetric_range(bits: int) -> tuple[int, int]:
    """Return the least and the largest signed code of ``bits`` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def symmetric_scale(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return the scale that covers ``[low, high]`` with signed codes.

    ``max(-low, high) / (2^(bits-1) - 1)``, kept away from zero.
    """
    largest = torch.maximum(-low, high)
    return (largest / symmetric_range(bits)[1]).clamp_min(_SMALLEST)


def symmetric_codes(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return ``x / scale``, rounded and clipped to signed codes, in the type of ``x``."""
    return round_through(x / scale).clamp(*symmetric_range(bits))


def asymmetric_scale(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and offset that cover ``[low, high]`` with codes in ``[0, 2^bits)``.

    Both are rounded to what float16 holds, the type in which caches store them, so that
    simulated and stored values agree; the gradient passes straight through.
    """
    low, high = low.clamp(-_HUGE, _HUGE), high.clamp(-_HUGE, _HUGE)
    offset = low + (low.half().to(low.dtype) - low).detach()
    scale = ((high - offset) / (2**bits - 1)).clamp_min(_TINY)
    return scale + (scale.half().to(scale.dtype) - scale).detach(), offset


def asymmetric_codes(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Return ``(x - offset) / scale``, rounded and clipped to codes, in the type of ``x``."""
    return round_through((x - offset) / scale).clamp(0, 2**bits - 1)


def row_range(x: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return the clipped range of every row of the last axis.

    Parameters
    ----------
    x : tensor of shape (..., n)
        Values.
    clip : tensor of shape (2,) or (..., 2)
        Fractions of each row's minimum and maximum to keep.

    Returns
    -------
    low, high : tensors of shape (..., 1)
        ``low <= 0 <= high`` except where a row has one sign only.
    """
    # not aminmax: torch 2.11 cannot differentiate it
    low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    return low * clip[..., :1], high * clip[..., 1:]
