"""Rescaling norms, so that quantised hidden states match the original ones after them.

Rounding adds noise to hidden states. A norm divides by their root mean square, noise
included, so what was signal comes out smaller, and the noise as large as the signal would
be. The factor that brings a norm's output closest to the original's in least squares undoes
that: ``g = <a, b> / <b, b>`` with ``a`` the original output and ``b`` the present one. It is
merged into the norm's weight and costs nothing at run time.
"""

import torch
from torch import Tensor, nn

from tesseral.quantization.calibration.task import BlockTask
from tesseral.quantization.fusion import fuse_norm

SEQUENCES = 16
"""Sequences from which a factor is estimated: thousands of tokens for one number."""


def rescale_norms(
    task: BlockTask, originals: dict[str, Tensor], received: Tensor
) -> dict[str, Tensor]:
    """Rescale the norms of a quantised block in the order in which they act.

    Parameters
    ----------
    task : BlockTask
        The block, quantised by now; its norms are changed in place.
    originals : dict of str to (sequences, length, hidden) tensor
        What entered each norm in the original model; see :func:`entering_norms`.
    received : (sequences, length, hidden) tensor
        What enters the block in the quantised model, for the same tokens.

    Returns
    -------
    dict of str to tensor
        The new weights, named relative to the block.
    """
    for name, original in originals.items():
        present = entering_norms(task, received)[name]
        norm = task.block.get_submodule(name)
        rescale_norm(norm, original, present, task.layout.norm_offset)
    return {
        f"{name}.weight": task.block.get_parameter(f"{name}.weight").clone() for name in originals
    }


@torch.no_grad()
def rescale_norm(norm: nn.Module, original: Tensor, present: Tensor, offset: float = 0.0) -> None:
    """Multiply a norm's weight by the factor that matches its outputs in least squares.

    Parameters
    ----------
    norm : module with a weight
        Changed in place.
    original, present : tensors of shape (..., hidden)
        What enters the norm in the original model and in the quantised one.
    offset : float
        The norm multiplies by its weight plus this.
    """
    target, output = norm(original).double(), norm(present).double()
    power = output.square().sum()
    if power > 0:
        weight = norm.get_parameter("weight")
        weight.copy_(fuse_norm(weight, (target * output).sum() / power, offset))


@torch.no_grad()
def entering_norms(task: BlockTask, inputs: Tensor) -> dict[str, Tensor]:
    """Return what enters each norm of a block, by name, for hidden states that enter the block."""
    captured: dict[str, list[Tensor]] = {name: [] for name in task.layout.norms.values()}
    hooks = [
        task.block.get_submodule(name).register_forward_pre_hook(
            lambda _, positional, kept=kept: kept.append(positional[0])
        )
        for name, kept in captured.items()
    ]
    try:
        for _ in task.run_all(inputs, 1):
            pass
    finally:
        for handle in hooks:
            handle.remove()
    return {name: torch.cat(kept) for name, kept in captured.items()}
