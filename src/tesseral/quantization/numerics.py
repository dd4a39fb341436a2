"""Scales and rounding: one function each, for simulated and for stored quantisation alike.

A quantiser turns ``x`` into codes and back into ``scale * code (+ offset)``. Codes are whole
numbers in a floating tensor. Calibration takes range, scale and codes from the functions that
storage takes them from; rounding passes gradients straight through.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from tesseral._errors import ParameterError

# keeps the scale of a row of zeros from zero, and squares of it from underflow
_SMALLEST = 2.0**-60
# the smallest normal and the largest float16: cached scales are stored in that type
_TINY = 2.0**-14
_HUGE = 65504.0


def working_dtype(model: torch.dtype) -> torch.dtype:
    """Return the type of transforms and scales for a model's: float64 for float64, or float32."""
    return torch.float64 if model == torch.float64 else torch.float32


def symmetric_range(bits: int) -> tuple[int, int]:
    """Return the least and the largest signed code of ``bits`` bits."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def symmetric_scale(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Return the scale that covers ``[low, high]`` with signed codes.

    There is one more code below zero than above. The side that reaches farther takes them, so
    the scale is negative where that is the upper one:
    ``max(far / 2^(bits-1), near / (2^(bits-1) - 1))``, kept away from zero.
    """
    least, largest = symmetric_range(bits)
    far, near = torch.maximum(-low, high), torch.minimum(-low, high)
    size = torch.maximum(far / -least, near / largest).clamp_min(_SMALLEST)
    return torch.where(high > -low, -size, size)


def symmetric_codes(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return ``x / scale``, rounded and clipped to signed codes, in the type of ``x``."""
    return (x / scale).round_().clamp_(*symmetric_range(bits))


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
    return ((x - offset) / scale).round_().clamp_(0, 2**bits - 1)


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
    low, high = _Extremes.apply(x)  # type: ignore[no-untyped-call]
    return low * clip[..., :1], high * clip[..., 1:]


def in_groups(weight: Tensor, group_size: int | None) -> Tensor:
    """View rows of a weight as groups that share a scale, of shape (rows, groups, size).

    Raises
    ------
    ParameterError
        If the rows cannot be cut into such groups.
    """
    size = weight.shape[-1] if group_size is None else group_size
    if weight.shape[-1] % size:
        raise ParameterError(
            f"quantization: group_size={size} does not divide the {weight.shape[-1]} channels "
            "of a layer's input."
        )
    groups: Tensor = weight.unflatten(-1, (-1, size))
    return groups


def weight_scale(weight: Tensor, clip: Tensor, bits: int, group_size: int | None) -> Tensor:
    """Return the scale of every group of a weight's rows, of shape (rows, groups).

    ``clip`` of shape (rows, 2) holds for all groups of a row; see :func:`row_range`.
    """
    bounds = row_range(in_groups(weight, group_size), clip[:, None])
    return symmetric_scale(*bounds, bits)[..., 0]


def rounded(x: Tensor, scale: Tensor, offset: Tensor | None, codes: tuple[int, int]) -> Tensor:
    """Return ``x`` as its codes represent it: ``scale * code (+ offset)``.

    The gradient passes the rounding as if nothing happened and stops where codes are clipped;
    it reaches scale and offset (FlatQuant, section 4.1; Esser et al. 2020, equation 3).

    Parameters
    ----------
    x : tensor of shape (..., n)
        Values.
    scale : tensor of shape (..., 1)
        Step between codes, for each row.
    offset : tensor of the shape of ``scale``, optional
        Value of code zero.
    codes : pair of int
        The least and the largest code.
    """
    result: Tensor = _Rounded.apply(x, scale, offset, *codes)  # type: ignore[no-untyped-call]
    return result


class _Extremes(Function):
    """Least and largest value of every row; the gradient goes to where they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        if not ctx.needs_input_grad[0]:
            return x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
        low, low_at = x.min(dim=-1, keepdim=True)
        high, high_at = x.max(dim=-1, keepdim=True)
        ctx.save_for_backward(low_at, high_at)
        ctx.like = x.shape
        return low, high

    @staticmethod
    def backward(ctx: Any, grad_low: Tensor, grad_high: Tensor) -> Tensor:
        low_at, high_at = ctx.saved_tensors
        grad = grad_low.new_zeros(ctx.like)
        return grad.scatter_(-1, low_at, grad_low).scatter_add_(-1, high_at, grad_high)


class _Rounded(Function):
    """What :func:`rounded` does, in few passes over memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor | None, least: int, largest: int
    ) -> Tensor:
        steps = (x if offset is None else x - offset).div(scale)
        result = steps.round().clamp_(least, largest).mul_(scale)
        if offset is not None:
            result += offset
        ctx.save_for_backward(steps, scale, offset, result)
        ctx.least, ctx.largest = least, largest
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, scale, offset, result = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(grad, steps, ctx.least - 0.5, ctx.largest + 0.5)
        grad_scale = grad_offset = None
        if ctx.needs_input_grad[1]:
            codes = result if offset is None else result - offset
            grad_scale = (grad * codes).sum(dim=-1, keepdim=True).div_(scale)
            grad_scale -= (inside * steps).sum(dim=-1, keepdim=True)
        if offset is not None and ctx.needs_input_grad[2]:
            grad_offset = (grad - inside).sum(dim=-1, keepdim=True)
        return inside, grad_scale, grad_offset, None, None
