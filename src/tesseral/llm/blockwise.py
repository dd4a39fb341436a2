"""Quantising a model's decoder blocks one after the other, with one of them in memory."""

import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral.llm.capture import block_arguments, hidden_states
from tesseral.llm.layouts import LAYOUTS, blocks_of, final_norm_of, open_block
from tesseral.quantization.block import replace_with_quantized
from tesseral.quantization.calibration.gains import (
    SEQUENCES,
    entering_norms,
    rescale_norm,
    rescale_norms,
)
from tesseral.quantization.calibration.loop import calibrate_block
from tesseral.quantization.calibration.ranks import Ranks
from tesseral.quantization.calibration.task import BlockTask, CalibrationStep, Report, in_memory
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.numerics import working_dtype


class Store(Protocol):
    """Where hidden states and finished blocks are kept; see :class:`.resume.Progress`."""

    def n_done(self, kinds: Iterable[str]) -> int:
        """Return how many blocks are done and need not be run again."""

    def keep(self, kind: str, block: int, batches: Iterable[Tensor]) -> Tensor:
        """Keep hidden states that enter a block, and return them."""

    def states(self, kind: str, block: int) -> Tensor | None:
        """Return hidden states that were kept, ``None`` if they are not there."""

    def save(self, block: int, state: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Keep the tensors of a block, with what is worth noting of it."""

    def facts(self, block: int) -> dict[str, str]:
        """Return what was noted of a block that was saved."""


class InMemory:
    """Keeps hidden states as they are and nothing else: blocks stay in the model."""

    def n_done(self, kinds: Iterable[str]) -> int:
        """Nothing was done before."""
        del kinds
        return 0

    def keep(self, kind: str, block: int, batches: Iterable[Tensor]) -> Tensor:
        """Return hidden states as one tensor."""
        del kind, block
        return in_memory(batches)

    def states(self, kind: str, block: int) -> Tensor | None:
        """Nothing was done before."""
        del kind, block
        return None

    def save(self, block: int, state: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Do nothing."""

    def facts(self, block: int) -> dict[str, str]:
        """Nothing was done before."""
        del block
        return {}


def quantize_blocks(
    model: PreTrainedModel,
    config: QuantizationConfig,
    sequences: Tensor,
    store: Store,
    report: Report,
    *,
    read: Callable[[int], nn.Module] | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Replace every block of a model by its quantised form.

    Parameters
    ----------
    model : transformers model
        Changed in place.
    config : QuantizationConfig
        What to do.
    sequences : integer tensor of shape (samples, length)
        Calibration tokens.
    store : Store
        Where finished blocks and hidden states are kept and looked for.
    report : callable
        As for :func:`~tesseral.llm.quantize`.
    read : callable, optional
        Returns a block with its weights; it gives them up when the next one is read. Without
        it all blocks hold their weights, and keep them.
    ranks : Ranks, optional
        Those among which the sequences of each step are divided; all call this, with a store that
        gives all of them the same.

    Returns
    -------
    (sequences, length, hidden) tensor
        What enters the last norm for some of the text at least: of the quantised model where
        anything depends on that, or of the original.

    Raises
    ------
    CalibrationError
        If the model, the loss or what was learned is not finite.
    """
    model.requires_grad_(False)
    blocks, arguments = blocks_of(model), block_arguments(model, sequences[0])
    separate = _runs_ahead(config)
    done = store.n_done(("hidden", "received") if separate else ("hidden",))
    for index in range(done):
        report(_done_before(index, len(blocks), store.facts(index)))
    hidden = store.states("hidden", done) if done else None
    if hidden is None:
        entering = hidden_states(model, sequences, config.batch_size)
        hidden = store.keep("hidden", 0, entering)
    received = store.states("received", done) if done and separate else None
    if received is None:
        received = hidden if config.propagate else hidden[:SEQUENCES]
    for index in range(done, len(blocks)):
        block = blocks[index] if read is None else read(index)
        layout, shape = open_block(block, model.config.model_type)
        task = BlockTask(
            block=block,
            layout=layout,
            shape=shape,
            arguments=moved(arguments[index], next(block.parameters()).device),
            inputs=hidden,
            received=received if config.propagate else hidden,
            index=index,
            n_blocks=len(blocks),
            keep=partial(store.keep, "hidden", index + 1),
            ranks=ranks,
        )
        last = Last(report)
        state, hidden = _quantize_block(task, config, received[:SEQUENCES], last)
        if separate:
            received = store.keep("received", index + 1, task.run_all(received, config.batch_size))
        store.save(index, state, last.facts)
        if read is not None:
            block.to("meta")
    if config.rescales:
        rescale_last_norm(model, hidden[:SEQUENCES], received[:SEQUENCES])
    return received if separate else hidden


def rescale_last_norm(model: PreTrainedModel, original: Tensor, present: Tensor) -> None:
    """Rescale the norm behind all blocks, from what enters it in the original and at present."""
    norm = final_norm_of(model)
    weight = norm.get_parameter("weight")
    norm.to(working_dtype(weight.dtype))
    offset = LAYOUTS[model.config.model_type][0].norm_offset
    rescale_norm(norm, original.to(weight), present.to(weight), offset)


def _runs_ahead(config: QuantizationConfig) -> bool:
    """Return whether anything needs what the quantised blocks make of the text."""
    reads = config.learns or config.rounding == "gptq"
    return config.rescales or (config.propagate and reads)


def _quantize_block(
    task: BlockTask, config: QuantizationConfig, received: Tensor, report: Report
) -> tuple[dict[str, Tensor], Tensor]:
    """Quantise a block in place; return its tensors and the original's outputs."""
    config = config.in_block(task.index)
    originals = entering_norms(task, task.inputs[:SEQUENCES]) if config.rescales else {}
    state, outputs = calibrate_block(task, config, report)
    put_quantized(task, config, state)
    return state | rescale_norms(task, originals, received), outputs


def put_quantized(task: BlockTask, config: QuantizationConfig, state: dict[str, Tensor]) -> None:
    """Replace the layers of a block by stored ones, filled with what was learned."""
    with torch.device(next(task.block.parameters()).device):
        dtype = working_dtype(task.inputs.dtype)
        replace_with_quantized(
            task.block, task.layout, task.shape, config.in_block(task.index), dtype
        )
    task.block.load_state_dict(state)


class Last:
    """Passes reports on, and notes what they say of a block."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.facts: dict[str, str] = {}

    def __call__(self, step: CalibrationStep) -> None:
        """Pass a report on."""
        if step.loss is not None:
            self.facts["loss"] = json.dumps(step.loss)
        if step.rare_experts:
            self.facts["rare_experts"] = json.dumps(step.rare_experts)
        self._report(step)


def _done_before(index: int, n_blocks: int, facts: dict[str, str]) -> CalibrationStep:
    rare = tuple(json.loads(facts.get("rare_experts", "[]")))
    return CalibrationStep(
        block=index, n_blocks=n_blocks, epoch=0, n_epochs=0, loss=None, rare_experts=rare
    )


def moved(value: Any, device: torch.device) -> Any:
    """Return arguments of a block with their tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(moved(entry, device) for entry in value)
    return value
