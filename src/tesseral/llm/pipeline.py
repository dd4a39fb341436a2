"""From a transformers checkpoint to a quantised one: load, calibrate, freeze, save."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral._errors import CheckpointError, OutputExistsError
from tesseral.llm.layouts import blocks_of, check_architecture, final_norm_of, open_block
from tesseral.llm.loading import load, quiet, read_config, stored_dtype
from tesseral.llm.quantizer import mark_quantized
from tesseral.llm.resume import Progress, disk_errors, identity
from tesseral.llm.text import clip_length, sample, tokenize
from tesseral.quantization.block import replace_with_quantized
from tesseral.quantization.calibration.gains import (
    SEQUENCES,
    entering_norms,
    rescale_norm,
    rescale_norms,
)
from tesseral.quantization.calibration.loop import calibrate_block, observe
from tesseral.quantization.calibration.task import BlockTask, Report
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.experts import ExpertUse
from tesseral.quantization.numerics import working_dtype
from tesseral.runtime.files import atomic_directory, check_output


def quantize(
    model: str | Path,
    config: QuantizationConfig,
    text: str,
    out: str | Path,
    resume: bool = True,
    *,
    overwrite: bool = False,
    report: Report | None = None,
) -> Path:
    """Quantise a model directory into another one.

    Blocks are calibrated one after the other, each to reproduce the original block's output.
    Each finished block is kept beside ``out`` until all are done, so that an interrupted
    run goes on where it stopped, with the same result.

    Parameters
    ----------
    model : path
        Directory in transformers' format; it is only read.
    config : QuantizationConfig
        What to do.
    text : str
        Calibration text, at least one sequence long.
    out : path
        Directory to make.
    resume : bool
        Go on with what an interrupted run of the same work left behind.
    overwrite : bool
        Replace ``out`` if it exists.
    report : callable, optional
        Called with a :class:`~tesseral.quantization.calibration.task.CalibrationStep` after
        every epoch of every block, and once for a block that needs none or was done before.

    Returns
    -------
    Path
        ``out``: safetensors, ``config.json`` with the configuration, and the tokenizer.

    Raises
    ------
    OutputExistsError
        If ``out`` exists and is not to be replaced, or holds the model.
    CheckpointError, UnsupportedModelError
        If the model cannot be read, is quantised already, or is of an unknown kind.
    DataError
        If the text is shorter than one sequence.
    CalibrationError
        If the model, the loss or what was learned is not finite.
    OSError
        If the disk is full; the blocks done so far are kept.
    """
    source, out = Path(model), check_output(out, overwrite=overwrite)
    if source.resolve().is_relative_to(out):
        raise OutputExistsError(f"{out} holds the model {source}; choose another output.")
    description = read_config(source)
    check_architecture(description["model_type"])
    dtype = stored_dtype(source, description)
    if description.get("quantization_config") is not None:
        raise CheckpointError(f"{source} is quantised already; give the original model.")
    loaded, tokenizer = load(source, dtype=torch.float32)
    sequences = sample(
        tokenize(loaded, tokenizer, text),
        clip_length(loaded, config.sequence_length),
        config.samples,
        config.seed,
    )
    progress = Progress(out, identity(source, config, text), resume=resume)
    quantize_blocks(loaded, config, sequences, progress, report or (lambda _: None))
    _restore_dtype(loaded, dtype)
    mark_quantized(loaded, config)
    with quiet(), disk_errors(out), atomic_directory(out, overwrite=overwrite) as temporary:
        loaded.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    progress.remove()
    return out


def quantize_blocks(
    model: PreTrainedModel,
    config: QuantizationConfig,
    sequences: Tensor,
    progress: Progress | None,
    report: Report,
) -> None:
    """Replace every block of a loaded model by its quantised form.

    Parameters
    ----------
    model : transformers model
        Changed in place.
    config : QuantizationConfig
        What to do.
    sequences : integer tensor of shape (samples, length)
        Calibration tokens.
    progress : Progress, optional
        Where finished blocks are kept and looked for.
    report : callable
        As for :func:`quantize`.
    """
    model.requires_grad_(False)
    blocks = blocks_of(model)
    arguments = block_arguments(model, sequences[0])
    hidden = received = hidden_states(model, sequences, config.batch_size)
    if not config.propagate:
        received = received[:SEQUENCES]
    for index, block in enumerate(blocks):
        layout, shape = open_block(block, model.config.model_type)
        task = BlockTask(
            block=block,
            layout=layout,
            shape=shape,
            arguments=arguments[index],
            inputs=hidden,
            received=received if config.propagate else hidden,
            index=index,
            n_blocks=len(blocks),
        )
        state = None if progress is None else progress.load(index)
        if state is None:
            originals = entering_norms(task, hidden[:SEQUENCES]) if config.rescales else {}
            state, hidden = calibrate_block(task, config, report)
            _replace(task, config, state)
            state |= rescale_norms(task, originals, received[:SEQUENCES])
            if progress is not None:
                progress.save(index, state)
        else:
            use = ExpertUse()
            with use.watched(block):
                hidden, _ = observe(task, config.batch_size)
            report(task.step(rare_experts=use.rare))
            _replace(task, config, state)
        if config.rescales or (config.propagate and config.learns):
            received = task.keep(task.run_all(received, config.batch_size))
    if config.rescales:
        rescale_norm(
            final_norm_of(model), hidden[:SEQUENCES], received[:SEQUENCES], layout.norm_offset
        )


def _replace(task: BlockTask, config: QuantizationConfig, state: dict[str, Tensor]) -> None:
    """Put the quantised parts in place of a block's linear layers."""
    dtype = working_dtype(task.inputs.dtype)
    replace_with_quantized(task.block, task.layout, task.shape, config, dtype)
    task.block.load_state_dict(state)


class _Stop(Exception):
    """Raised to leave a model at its first block."""


@torch.no_grad()
def hidden_states(model: PreTrainedModel, sequences: Tensor, batch_size: int) -> Tensor:
    """Return the hidden states of shape (samples, length, hidden) that enter the first block."""
    captured: list[Tensor] = []

    def hook(_: nn.Module, positional: tuple[Tensor, ...]) -> None:
        captured.append(positional[0])
        raise _Stop

    handle = blocks_of(model)[0].register_forward_pre_hook(hook)
    try:
        for batch in sequences.to(model.device).split(batch_size):
            with suppress(_Stop):
                model(batch, use_cache=False)
    finally:
        handle.remove()
    return torch.cat(captured)


@torch.no_grad()
def block_arguments(model: PreTrainedModel, sequence: Tensor) -> list[dict[str, Any]]:
    """Return the keyword arguments with which each block is called for one sequence.

    They hold positions and masks, the same for every sequence of that length.
    """
    captured: list[dict[str, Any]] = []

    def hook(_: nn.Module, __: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        captured.append(keywords)

    handles = [
        block.register_forward_pre_hook(hook, with_kwargs=True) for block in blocks_of(model)
    ]
    try:
        model(sequence[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return captured


def _restore_dtype(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put what was not quantised back into the type that the original has on disk."""
    blocks = {id(p) for p in blocks_of(model).parameters()}
    for parameter in model.parameters():
        if id(parameter) not in blocks:
            parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
