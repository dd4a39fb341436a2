"""``tesseral quantize``: make a low-bit model out of a model directory."""

from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesseral._errors import ParameterError
from tesseral.cli.console import print_json, progress
from tesseral.cli.inputs import (
    RANK_DEFAULT,
    Model,
    Out,
    Overwrite,
    model_directory,
    read_text,
    require_llm,
    text_to_use,
)
from tesseral.quantization.advice import Advice
from tesseral.quantization.config import FAST, ROUNDINGS, TRANSFORMS, QuantizationConfig
from tesseral.report.units import bytes_text, seconds_text

if TYPE_CHECKING:
    from tesseral.llm.budget import Budget
    from tesseral.quantization.calibration.task import CalibrationStep

_DEFAULTS = {field.name: field.default for field in fields(QuantizationConfig)}


def _setting(name: str, meaning: str) -> Any:
    """Return an option for a field of the configuration; ``None`` means that it was not given."""
    default = _DEFAULTS[name]
    return typer.Option(help=meaning, show_default="none" if default is None else str(default))


def quantize(
    model: Model,
    out: Out,
    text: Annotated[
        Path | None,
        typer.Option(help="Calibration text, UTF-8.", show_default="books in the package"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with the fields of QuantizationConfig; the options below override it.",
            show_default="none",
        ),
    ] = None,
    advice: Annotated[
        Path | None,
        typer.Option(
            help="advice.json of tesseral analyze: widths of every layer.", show_default="none"
        ),
    ] = None,
    transform: Annotated[
        str | None, _setting("transform", f"One of {', '.join(TRANSFORMS)}.")
    ] = None,
    weight_bits: Annotated[int | None, _setting("weight_bits", "2 to 8, or 16 for off.")] = None,
    activation_bits: Annotated[
        int | None, _setting("activation_bits", "2 to 8, or 16 for off.")
    ] = None,
    kv_bits: Annotated[int | None, _setting("kv_bits", "2 to 8, or 16 for off.")] = None,
    key_bits: Annotated[
        int | None, _setting("key_bits", "Of keys alone, in place of --kv-bits.")
    ] = None,
    value_bits: Annotated[
        int | None, _setting("value_bits", "Of values alone, in place of --kv-bits.")
    ] = None,
    head_bits: Annotated[
        int | None, _setting("head_bits", "Of the output embedding: 2 to 8, or 16 for off.")
    ] = None,
    group_size: Annotated[
        int | None, _setting("group_size", "Neighbours in a weight's row that share a scale.")
    ] = None,
    rounding: Annotated[str | None, _setting("rounding", f"One of {', '.join(ROUNDINGS)}.")] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help=f"For a CPU: {', '.join(f'{name} {value}' for name, value in FAST.items())}, "
            "where not given.",
        ),
    ] = False,
    epochs: Annotated[int | None, _setting("epochs", "Passes over the sequences.")] = None,
    samples: Annotated[int | None, _setting("samples", "Calibration sequences.")] = None,
    sequence_length: Annotated[
        int | None, _setting("sequence_length", "Tokens in each, at most the model's maximum.")
    ] = None,
    batch_size: Annotated[int | None, _setting("batch_size", "Sequences in a step.")] = None,
    learning_rate: Annotated[
        float | None, _setting("learning_rate", "Initial step size of the transforms.")
    ] = None,
    clip_learning_rate: Annotated[
        float | None, _setting("clip_learning_rate", "Initial step size of the clips.")
    ] = None,
    seed: Annotated[int | None, _setting("seed", "Fixes everything random.")] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with what an interrupted run left behind.")
    ] = True,
    overwrite: Overwrite = False,
    device: Annotated[
        str | None,
        typer.Option(help="Where the block in work is: cpu or cuda.", show_default=RANK_DEFAULT),
    ] = None,
    devices: Annotated[
        int,
        typer.Option(help="Blocks in work at once, a device each; needs --no-propagate."),
    ] = 1,
    propagate: Annotated[
        bool | None,
        typer.Option(
            "--propagate/--no-propagate",
            help="Whether blocks learn on what the quantised ones before them produce.",
            show_default="propagate",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Quantise a language model: weights, activations and cache.

    Started by torchrun, its processes divide every step among them, and the first one writes.

    Example: tesseral quantize embedded lm-5m-w4a4 --epochs 6 --samples 32

    With widths of each layer: tesseral quantize embedded mixed --advice analysis/advice.json
    """
    given = {
        "transform": transform,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "kv_bits": kv_bits,
        "key_bits": key_bits,
        "value_bits": value_bits,
        "head_bits": head_bits,
        "group_size": group_size,
        "rounding": rounding,
        "epochs": epochs,
        "samples": samples,
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "clip_learning_rate": clip_learning_rate,
        "seed": seed,
        "propagate": propagate,
    }
    source = model_directory(model)
    settings = configuration(config, given, fast=fast)
    if advice is not None:
        settings = advised(settings, advice, given, source)
    words = text_to_use(text, "calibration")
    require_llm("quantize")
    from tesseral import llm
    from tesseral.llm.footprint import disk_bytes

    started = monotonic()
    with ExitStack() as stack:
        ranks, place = _ranks(stack, device)
        bars = stack.enter_context(progress())
        bar = BlockBar(bars)
        first = ranks is None or ranks.rank == 0
        written = llm.quantize(
            source,
            settings,
            words,
            out,
            resume,
            overwrite=overwrite,
            device=place,
            devices=devices,
            ranks=ranks,
            report=bar.advance if first else None,
            announce=_announce if first else None,
        )
        bar.finish()
    if not first:
        return
    record = {
        "path": str(written),
        "disk_bytes_before": disk_bytes(source),
        "disk_bytes": disk_bytes(written),
        "elapsed_s": round(monotonic() - started, 3),
        "losses": bar.losses,
        "rare_experts": bar.rare_experts,
        "config": settings.to_dict(),
    }
    if json:
        print_json(record)
    else:
        for block, experts in bar.rare_experts.items():
            typer.echo(
                f"block {block + 1}: few calibration tokens chose expert "
                f"{', '.join(map(str, experts))}; a longer or more varied text may help them",
                err=True,
            )
        typer.echo(_line(record))


def _ranks(stack: ExitStack, device: str | None) -> tuple[Any, str]:
    """Return the ranks that torchrun started, if it did, and where this one computes."""
    from tesseral.attention.distributed.launch import joined, launched

    if not launched():
        return None, device or "cpu"
    from tesseral.quantization.calibration.ranks import Ranks

    place = stack.enter_context(joined(kind=device))
    return Ranks(), str(place)


def configuration(
    file: Path | None, given: dict[str, Any], *, fast: bool = False
) -> QuantizationConfig:
    """Return the configuration in ``file``, or the default one, with what was given on top."""
    base = QuantizationConfig() if file is None else QuantizationConfig.from_json(read_text(file))
    changes = {name: value for name, value in given.items() if value is not None}
    return QuantizationConfig.from_dict(base.to_dict() | (FAST if fast else {}) | changes)


def advised(
    settings: QuantizationConfig, file: Path, given: dict[str, Any], model: Path
) -> QuantizationConfig:
    """Return a configuration with the widths in a file of ``tesseral analyze``.

    Raises
    ------
    ParameterError
        If the file holds none, or was made for another model, or a width was given too.
    """
    both = [name for name in ("weight_bits", "activation_bits") if given[name] is not None]
    if both:
        option = both[0].replace("_", "-")
        raise ParameterError(f"--advice decides every layer's widths: leave --{option} out.")
    require_llm("quantize")
    from tesseral.llm.loading import read_config

    advice = Advice.from_json(read_text(file))
    description = read_config(model)
    advice.check_model(description.get("text_config", description)["num_hidden_layers"])
    return advice.applied_to(settings)


def _announce(needed: "Budget") -> None:
    typer.echo(
        f"needs at most {bytes_text(needed.memory_bytes)} of memory and "
        f"{bytes_text(needed.disk_bytes)} on disk",
        err=True,
    )


class BlockBar:
    """A progress bar over blocks and epochs, and a line for each block that was learned.

    Parameters
    ----------
    bars : rich.progress.Progress
        Where to draw it, from the first step on.

    Attributes
    ----------
    losses : dict of int to float
        Last loss of every block that was learned in this run.
    rare_experts : dict of int to tuple of int
        Experts that few calibration tokens chose, of every block that has some.
    """

    def __init__(self, bars: Any) -> None:
        self._bars, self._task = bars, None
        self._started = self._begun = monotonic()
        self._last: CalibrationStep | None = None
        self.losses: dict[int, float] = {}
        self.rare_experts: dict[int, tuple[int, ...]] = {}

    def advance(self, step: "CalibrationStep") -> None:
        """Show one more epoch of one block."""
        if self._task is None:
            self._task = self._bars.add_task("")
        if self._last is not None and step.block != self._last.block:
            self.finish()
        words, per_block = f"block {step.block + 1} of {step.n_blocks}", max(step.n_epochs, 1)
        if step.rare_experts:
            self.rare_experts[step.block] = step.rare_experts
        if step.loss is None and step.n_epochs == 0:
            self._started = self._begun = monotonic()  # nothing to learn how long learning takes
        if step.loss is not None:
            self.losses[step.block] = step.loss
            self._last = step
            words += f", loss {step.loss:.4f}"
        done = step.block * per_block + (step.epoch if step.n_epochs else 1)
        self._bars.update(
            self._task, description=words, completed=done, total=step.n_blocks * per_block
        )

    def finish(self) -> None:
        """Say how the block in work ended, how long it took, and what is left to do."""
        if self._last is None:
            return
        now, step = monotonic(), self._last
        words = f"block {step.block + 1} of {step.n_blocks}: loss {step.loss:.5f}, "
        words += seconds_text(now - self._begun)
        left = step.n_blocks - step.block - 1
        if left:
            words += f", about {seconds_text((now - self._started) / len(self.losses) * left)} left"
        self._bars.console.print(words, highlight=False, soft_wrap=True)
        self._begun, self._last = now, None


def _line(record: dict[str, Any]) -> str:
    config = record["config"]
    mixed = ", mixed widths," if config["layers"] else ""
    keys, values = QuantizationConfig.from_dict(config).cache_bits
    cache = f"KV{keys}" if keys == values else f"K{keys}V{values}"
    return (
        f"wrote {record['path']}: W{config['weight_bits']}A{config['activation_bits']}"
        f"{cache}{mixed} with transform {config['transform']}, weights "
        f"{bytes_text(record['disk_bytes_before'])} -> {bytes_text(record['disk_bytes'])}, "
        f"{seconds_text(record['elapsed_s'])}"
    )
