"""One block to calibrate, and what is reported of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tesseral.quantization.calibration.ranks import Ranks
from tesseral.quantization.placement import BlockLayout, BlockShape


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationStep:
    """What a progress report says: one more epoch of one block, or a whole block, is done.

    A block with experts that are rarely used is announced before its first epoch, too.

    Attributes
    ----------
    block, n_blocks : int
        Number of the block, from 0, and how many there are.
    epoch, n_epochs : int
        Epochs done in this block, and how many there will be; 0 and 0 for a block in which
        nothing is learned.
    loss : float, optional
        The objective, a mean squared error relative to the output's power; ``None`` for a
        block in which nothing is learned.
    rare_experts : tuple of int
        Experts of this block that few calibration tokens chose, so that what is learned of
        them rests on little; they share their transforms with the others.
    """

    block: int
    n_blocks: int
    epoch: int
    n_epochs: int
    loss: float | None
    rare_experts: tuple[int, ...] = ()


Report = Callable[[CalibrationStep], None]


def in_memory(batches: Iterable[Tensor]) -> Tensor:
    """Keep hidden states as one tensor."""
    return torch.cat(list(batches))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTask:
    """One block to calibrate.

    Attributes
    ----------
    block, layout, shape
        The block, its names and its sizes.
    arguments : dict
        Keyword arguments of every call of the block beside the hidden states.
    inputs : (samples, length, hidden) tensor
        Hidden states that enter the block in the original model; its outputs on them are
        the target.
    received : (samples, length, hidden) tensor
        Hidden states on which the quantised block learns to meet the target: those that its
        quantised predecessors produce, or ``inputs`` again.
    index, n_blocks : int
        Its number and how many there are.
    keep : callable
        Makes a tensor of the block's outputs, given batch by batch. Like ``inputs`` and
        ``received`` it may be of another type than the block, or read from a file as needed:
        whoever computes takes some rows at a time, and converts them.
    ranks : Ranks, optional
        Those among which the sequences of a step are divided; each has the block and all states.
    """

    block: nn.Module
    layout: BlockLayout
    shape: BlockShape
    arguments: dict[str, Any]
    inputs: Tensor
    received: Tensor
    index: int
    n_blocks: int
    keep: Callable[[Iterable[Tensor]], Tensor] = in_memory
    ranks: Ranks | None = None

    def run(self, inputs: Tensor) -> Tensor:
        """Return the block's output on some hidden states, on its device and in its type."""
        like = next(self.block.parameters())
        outputs: Tensor = self.block(inputs.to(like.device, like.dtype), **self.arguments)
        return outputs

    @torch.no_grad()
    def run_all(self, inputs: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Yield the block's output on all hidden states, some sequences at a time."""
        for batch in inputs.split(batch_size):
            yield self.run(batch)

    def step(
        self,
        epoch: int = 0,
        n_epochs: int = 0,
        loss: float | None = None,
        rare_experts: tuple[int, ...] = (),
    ) -> CalibrationStep:
        """Return what to report of this block."""
        return CalibrationStep(
            block=self.index,
            n_blocks=self.n_blocks,
            epoch=epoch,
            n_epochs=n_epochs,
            loss=loss,
            rare_experts=rare_experts,
        )
