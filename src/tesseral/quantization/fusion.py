"""Folding transforms and scales into the weights around them."""

import torch
from torch import Tensor

from tesseral.quantization.transforms.kronecker import Kronecker


def fuse_input(weight: Tensor, transform: Kronecker, scale: Tensor | None) -> Tensor:
    """Return the weight that reads ``(x * scale) P`` in place of ``x``: ``(W / scale) P^-T``.

    Parameters
    ----------
    weight : (out_features, in_features) tensor
        Float64 when the result is kept; see :mod:`tesseral.quantization.freeze`.
    transform : Kronecker
        What is applied to the input.
    scale : (in_features,) tensor, optional
        Per-channel scale applied before the transform.
    """
    scaled = weight if scale is None else weight / scale
    return transform.apply_inverse_transpose(scaled)


def fuse_heads(weight: Tensor, per_head: Tensor, rows: slice) -> Tensor:
    """Return the weight or bias whose output is ``x P_v`` in place of ``x``, head by head.

    Parameters
    ----------
    weight : (out_features, ...) tensor
        Weight or bias; rows are output channels.
    per_head : (head_dim, head_dim) tensor
        Matrix that multiplies each head of the output from the right.
    rows : slice
        The output channels that are heads of values; the others stay.
    """
    values = weight[rows]
    heads = values.reshape(-1, per_head.shape[0], *values.shape[1:])
    fused = per_head.mT @ heads.flatten(2) if values.ndim > 1 else heads @ per_head
    return torch.cat([weight[: rows.start], fused.reshape(values.shape), weight[rows.stop :]])


def fuse_scale(weight: Tensor, scale: Tensor, rows: slice) -> Tensor:
    """Return the weight or bias whose output is ``x * scale`` in place of ``x``.

    Parameters
    ----------
    weight : (out_features, ...) tensor
        Weight or bias; rows are output channels.
    scale : tensor with an entry for each of ``rows``
        Scale of these output channels; the others stay.
    rows : slice
        Which these are.
    """
    scaled = weight[rows] * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return torch.cat([weight[: rows.start], scaled, weight[rows.stop :]])


def fuse_norm(weight: Tensor, scale: Tensor, offset: float) -> Tensor:
    """Return the weight of a norm whose output is ``x * scale`` in place of ``x``.

    Parameters
    ----------
    weight : (width,) tensor
        The norm multiplies by this plus ``offset``.
    scale : tensor that broadcasts to (width,)
        Scale of each channel.
    offset : float
        See :class:`~tesseral.quantization.placement.BlockLayout`.
    """
    return (weight + offset) * scale - offset
