"""Second moments of what a block rounds, and of the gradients there."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tesseral.quantization.calibration.task import BlockTask
from tesseral.quantization.placement import CODEC, INPUT_SITES

SEQUENCES = 16
"""Sequences that are measured: more tokens than a layer has channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Second moments of rows that are rounded, and of the objective's gradients at them.

    A token counts in one by its size in the other: its rounding error is as large as its row,
    and matters as much as its gradient is large.

    Attributes
    ----------
    rows, gradients : (n, n) tensor
        ``sum_t |g_t|^2 x_t^T x_t`` and ``sum_t |x_t|^2 g_t^T g_t``.
    """

    rows: Tensor
    gradients: Tensor

    def scaled(self, scale: Tensor) -> "Moments":
        """Return the moments once each channel of the rows is multiplied by a scale."""
        outer = scale[:, None] * scale
        return Moments(rows=self.rows * outer, gradients=self.gradients / outer)


@torch.enable_grad()
def wake_gradients(device: torch.device) -> None:
    """Let the thread of gradients meet a CUDA device, before it calls a library that expects so."""
    if device.type == "cuda":
        (2 * torch.ones(1, device=device, requires_grad=True)).sum().backward()


def measure(task: BlockTask, weights: Tensor, generator: torch.Generator) -> dict[str, Moments]:
    """Measure moments at every input site, and at the keys under the codec's name.

    Gradients are those of random projections of the original block's output, the error of each
    token weighed as in the objective; their second moments are its Hessian.

    Parameters
    ----------
    task : BlockTask
        The block; the first sequences of ``task.received`` are run.
    weights : (samples, length, 1) tensor
        Weight of every token; see :func:`.objective.token_weights`.
    generator : torch.Generator
        Draws the projections.
    """
    wake_gradients(next(task.block.parameters()).device)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    seen: list[tuple[str, Tensor]] = []
    attention = task.block.get_submodule(task.layout.attention)
    hooks = [
        task.block.get_submodule(name).register_forward_pre_hook(_watcher(site.name, seen))
        for site in INPUT_SITES
        for name in task.layout.first_readers(site)
    ]
    attention.add_module(CODEC, _Passage(seen))
    try:
        for rows in range(min(SEQUENCES, len(task.received))):
            batch = slice(rows, rows + 1)
            _differentiate(task, task.received[batch], weights[batch], generator)
            for name, x in seen:
                if x.grad is not None:
                    pair = _products(x.detach().flatten(0, -2), x.grad.flatten(0, -2))
                    old = sums.get(name)
                    sums[name] = pair if old is None else (old[0] + pair[0], old[1] + pair[1])
            seen.clear()
    finally:
        for handle in hooks:
            handle.remove()
        delattr(attention, CODEC)
    return {name: Moments(rows=a, gradients=b) for name, (a, b) in sums.items()}


class _Passage(nn.Module):
    """Stands where the codec will stand, and notes the keys."""

    def __init__(self, seen: list[tuple[str, Tensor]]) -> None:
        super().__init__()
        self._seen = seen

    def transform_query(self, query: Tensor) -> Tensor:
        """Return the queries."""
        return query

    def encode(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values."""
        key.retain_grad()
        self._seen.append((CODEC, key))
        return key, value


def _watcher(
    name: str, seen: list[tuple[str, Tensor]]
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        arguments[0].retain_grad()
        seen.append((name, arguments[0]))

    return hook


def _differentiate(
    task: BlockTask, inputs: Tensor, weights: Tensor, generator: torch.Generator
) -> None:
    like = next(task.block.parameters())
    with torch.enable_grad():
        output = task.run(inputs.to(like).requires_grad_())
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        output.backward(signs.to(output) * weights.to(output).sqrt())


def _products(rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    sizes, slopes = (x.square().sum(-1, keepdim=True) for x in (rows, gradients))
    return (rows * slopes).mT @ rows, (gradients * sizes).mT @ gradients
