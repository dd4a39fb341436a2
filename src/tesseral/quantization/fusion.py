"""Folding transforms and scales into the weights around them."""

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


def fuse_output(rows: Tensor, per_head: Tensor | None, scale: Tensor | None) -> Tensor:
    """Return the weight or bias whose output is ``(x P_v) * scale`` in place of ``x``.

    Parameters
    ----------
    rows : (out_features, ...) tensor
        Weight or bias; rows are output channels.
    per_head : (head_dim, head_dim) tensor, optional
        Matrix that multiplies each head of the output from the right.
    scale : (out_features,) tensor, optional
        Scale of each output channel.
    """
    if per_head is not None:
        heads = rows.reshape(-1, per_head.shape[0], *rows.shape[1:])
        rows = (per_head.mT @ heads.flatten(2) if rows.ndim > 1 else heads @ per_head).reshape(
            rows.shape
        )
    if scale is not None:
        rows = rows * scale.reshape(-1, *[1] * (rows.ndim - 1))
    return rows
