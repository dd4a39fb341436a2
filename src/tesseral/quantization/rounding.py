"""Choosing the codes of a weight: to the nearest, or so that errors cancel in its output."""

import torch
from torch import Tensor

from tesseral.quantization.numerics import symmetric_codes

_DAMPING = 0.01  # of the mean of the moments' diagonal
_COLUMNS = 128  # columns whose errors are spread together


def nearest_codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Round every value to the nearest code.

    Parameters
    ----------
    weight : (out_features, in_features) tensor
        Values to round.
    scale : (out_features, groups) tensor
        Scale of each group of neighbours in a row.
    bits : int
        Width of the codes.

    Returns
    -------
    tensor of shape (out_features, in_features)
        Whole numbers in the range of signed codes, in the type of ``weight``.
    """
    groups = weight.unflatten(-1, (scale.shape[-1], -1))
    return symmetric_codes(groups, scale[..., None], bits).flatten(-2)


def compensated_codes(weight: Tensor, scale: Tensor, bits: int, moments: Tensor) -> Tensor:
    """Round column after column, letting later columns make up for each error (GPTQ).

    Minimises, greedily, the expected squared error of ``x W^T`` for inputs with the given
    second moments, in place of the error of ``W`` itself.

    Parameters
    ----------
    weight : (out_features, in_features) tensor
        Values to round, float64.
    scale : (out_features, groups) tensor
        Scale of each group of neighbours in a row; it stays as it is.
    bits : int
        Width of the codes.
    moments : (in_features, in_features) tensor
        Second moments of what the weight is multiplied with, up to a factor.

    Returns
    -------
    tensor of shape (out_features, in_features)
        Whole numbers in the range of signed codes, in the type of ``weight``.

    References
    ----------
    Frantar, Ashkboos, Hoefler and Alistarh (2023), "GPTQ", algorithm 1.
    """
    factor = _error_factor(moments.to(weight.dtype))
    steps = scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    rest, codes = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[1], _COLUMNS):
        stop = min(start + _COLUMNS, weight.shape[1])
        errors = torch.empty_like(weight[:, start:stop])
        for column in range(start, stop):
            value = rest[:, column : column + 1]
            step = steps[:, column : column + 1]
            code = symmetric_codes(value, step, bits)
            error = (value - code * step) / factor[column, column]
            rest[:, column:stop] -= error * factor[column, column:stop]
            codes[:, column : column + 1] = code
            errors[:, column - start : column - start + 1] = error
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def _error_factor(moments: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of the damped moments."""
    diagonal = moments.diagonal()
    # an input that is always zero says nothing about its column: any positive number does
    damped = moments + torch.diag(
        torch.where(diagonal == 0, 1.0, 0.0) + _DAMPING * diagonal.mean().clamp_min(1e-12)
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
