"""From a transformers checkpoint to a quantised one: open, calibrate, freeze, save."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tesseral._errors import CheckpointError, OutputExistsError, ParameterError
from tesseral.llm.blockwise import quantize_blocks
from tesseral.llm.budget import Budget, budget, check, hidden_size
from tesseral.llm.card import NAME as CARD
from tesseral.llm.card import model_card
from tesseral.llm.farm import quantize_blocks_apart
from tesseral.llm.footprint import disk_bytes
from tesseral.llm.head import head_state
from tesseral.llm.layouts import blocks_name, blocks_of, check_architecture, final_norm_of
from tesseral.llm.lazy_model import LazyModel
from tesseral.llm.loading import quiet, read_config, read_tokenizer, stored_dtype, usable_device
from tesseral.llm.quantizer import save
from tesseral.llm.resume import Progress, SharedProgress, disk_errors, identity
from tesseral.llm.text import clip_length, sample, tokenize
from tesseral.quantization.calibration.ranks import Ranks
from tesseral.quantization.calibration.task import Report
from tesseral.quantization.config import OFF, QuantizationConfig
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
    device: str | torch.device = "cpu",
    devices: int = 1,
    ranks: Ranks | None = None,
    report: Report | None = None,
    announce: Callable[[Budget], None] | None = None,
) -> Path:
    """Quantise a model directory into another one.

    Blocks are calibrated one after the other, each to reproduce the original block's output.
    Only one is in memory at a time, in float32; hidden states lie in files beside ``out``, in
    bfloat16. Each finished block is kept there too until all are done, so that an interrupted
    run, however it ended, goes on where it stopped, with the same result.

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
    device : str or torch.device
        Where the block in work is.
    devices : int
        Blocks in work at once, each on a device of that kind, from the first on; on a CPU they
        share it. More than one needs ``propagate=False`` in the configuration.
    ranks : Ranks, optional
        Processes of this machine that all call this: they divide the sequences of each step, and
        the first one writes. Rounding differs from that of one process.
    report : callable, optional
        Called with a :class:`~tesseral.quantization.calibration.task.CalibrationStep` after
        every epoch of every block, and once for a block that needs none or was done before.

    announce : callable, optional
        Called with the :class:`~tesseral.llm.budget.Budget` of the run before it starts.

    Returns
    -------
    Path
        ``out``: safetensors, ``config.json`` with the configuration, the tokenizer, and a
        model card. Of several ranks the first one returns when it is there, others when all
        blocks are done.

    Raises
    ------
    OutputExistsError
        If ``out`` exists and is not to be replaced, or holds the model.
    CheckpointError, UnsupportedModelError
        If the model cannot be read, is quantised already, or is of an unknown kind.
    DataError
        If the text is shorter than one sequence.
    ParameterError
        If there is no such device, or blocks cannot be learned side by side.
    CalibrationError
        If the model, the loss or what was learned is not finite.
    OSError
        If less is free on the disk than the run needs, or the disk is full; the blocks done
        so far are kept.

    Warns
    -----
    MemoryWarning
        If the run may need more memory than is available.
    """
    source, out = Path(model), check_output(out, overwrite=overwrite)
    places = _places(device, devices, config)
    if ranks is not None and devices > 1:
        raise ParameterError("quantize: give devices or ranks, not both.")
    if source.resolve().is_relative_to(out):
        raise OutputExistsError(f"{out} holds the model {source}; choose another output.")
    description = read_config(source)
    check_architecture(description["model_type"])
    dtype = stored_dtype(source, description)
    if description.get("quantization_config") is not None:
        raise CheckpointError(f"{source} is quantised already; give the original model.")
    lazy, tokenizer = LazyModel(source), read_tokenizer(source)
    sequences = sample(
        tokenize(lazy.model, tokenizer, text),
        clip_length(lazy.model, config.sequence_length),
        config.samples,
        config.seed,
    )
    needed = budget(lazy.model, config, *sequences.shape).at_once(
        devices, sequences.numel() * hidden_size(lazy.model), on_cpu=places[0].type == "cpu"
    )
    if announce is not None:
        announce(needed)
    check(needed, out, places[0])
    work_on = identity(source, config, text)
    progress = (
        Progress(out, work_on, resume=resume)
        if ranks is None
        else SharedProgress(out, work_on, resume=resume, ranks=ranks)
    )
    read = partial(lazy.read_block, dtype=working_dtype(dtype))
    work = lazy.model, config, sequences, progress, report or (lambda _: None)
    if devices > 1 or (ranks is None and progress.any_learned()):
        entering = quantize_blocks_apart(*work, read=read, devices=places)
    else:
        entering = quantize_blocks(*work, read=partial(read, device=places[0]), ranks=ranks)
    if ranks is not None:
        ranks.wait()  # here all are done; writing may take longer than they wait for one another
    if ranks is None or ranks.rank == 0:
        _write(lazy, tokenizer, progress, config, entering, source, out, dtype, overwrite=overwrite)
        progress.remove()
    return out


def _write(
    lazy: LazyModel,
    tokenizer: Any,
    progress: Progress,
    config: QuantizationConfig,
    entering: Tensor,
    source: Path,
    out: Path,
    dtype: torch.dtype,
    *,
    overwrite: bool,
) -> None:
    """Write the directory of a model whose blocks are all done."""
    head = head_state(lazy.model, config, entering) if config.head_bits != OFF else {}
    final_norm_of(lazy.model).to(dtype)
    with quiet(), disk_errors(out), atomic_directory(out, overwrite=overwrite) as temporary:
        state = lazy.outside() | progress.blocks(blocks_name(lazy.model)) | head
        save(lazy.model, state, config, temporary)
        tokenizer.save_pretrained(temporary)
        facts = [progress.facts(index) for index in range(len(blocks_of(lazy.model)))]
        sizes = disk_bytes(source), disk_bytes(temporary)
        card = model_card(source.resolve().name, config, facts, sizes)
        (temporary / CARD).write_text(card, encoding="utf-8")
        for file in temporary.iterdir():  # safetensors lets nobody else read its files
            file.chmod((temporary / "config.json").stat().st_mode)


def _places(
    device: str | torch.device, count: int, config: QuantizationConfig
) -> list[torch.device]:
    """Return where blocks in work are."""
    first = usable_device(device)
    if count < 1:
        raise ParameterError(f"quantize: devices must be 1 or more, got {count}.")
    if count == 1:
        return [first]
    if config.propagate:
        raise ParameterError(
            f"quantize: devices={count} needs propagate=False: a block that learns on what the "
            "quantised blocks before it produce has to wait for them. Processes started by "
            "torchrun may divide its steps instead."
        )
    if first.type == "cpu":
        return [first] * count
    start = first.index or 0
    return [usable_device(f"{first.type}:{start + number}") for number in range(count)]
