"""Calibration of one block: learn what makes its rounded output match the original's."""

import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tesseral._errors import CalibrationError, PrecisionWarning
from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.moments import second_moments
from tesseral.quantization.calibration.objective import token_weights
from tesseral.quantization.calibration.start import start_from_moments
from tesseral.quantization.calibration.statistics import measure
from tesseral.quantization.calibration.steps import Steps
from tesseral.quantization.calibration.task import BlockTask, Report
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.experts import ExpertUse
from tesseral.quantization.freeze import frozen_state
from tesseral.quantization.numerics import working_dtype
from tesseral.quantization.placement import INPUT_SITES


def calibrate_block(
    task: BlockTask, config: QuantizationConfig, report: Report
) -> tuple[dict[str, Tensor], Tensor]:
    """Learn one block's transforms and return its stored tensors and original outputs.

    Raises
    ------
    CalibrationError
        If the original output, the loss, or what would be stored is not finite.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + task.index)
    use = ExpertUse()
    with use.watched(task.block):
        outputs, maxima = observe(task, config.batch_size)
    if use.rare and config.learns:
        report(task.step(n_epochs=config.epochs, rare_experts=use.rare))
    simulated = SimulatedBlock(task.block, task.layout, task.shape, config, maxima, generator)
    simulated.to(next(task.block.parameters()).device)
    simulated.refresh()
    weights = token_weights(outputs, config.objective)
    if config.start == "moments" and "transforms" in config.learned:
        start_from_moments(simulated, measure(task, weights, generator))
    if config.learns:
        _learn_safely(task, simulated, outputs, weights, generator, report)
    else:
        report(task.step(rare_experts=use.rare))
    moments = None
    if config.rounding == "gptq":
        moments = second_moments(simulated, task, weights)
        for name, moment in moments.items():
            _check_finite(f"the second moment of {name}", moment, task.index)
    state = frozen_state(simulated, working_dtype(task.inputs.dtype), moments)
    for name, tensor in state.items():
        _check_finite(name, tensor, task.index)
    return state, outputs


@torch.no_grad()
def observe(task: BlockTask, batch_size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the original block; return its outputs and each input site's channel maxima.

    Raises
    ------
    CalibrationError
        If an output is not finite.
    """
    maxima: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            largest = arguments[0].abs().flatten(0, -2).amax(dim=0)
            maxima[name] = torch.maximum(maxima.get(name, largest), largest)

        return hook

    hooks = [
        task.block.get_submodule(name).register_forward_pre_hook(watch(site.name))
        for site in INPUT_SITES
        for name in task.layout.first_readers(site)
    ]
    try:
        outputs = task.keep(_finite(task, task.run_all(task.inputs, batch_size)))
    finally:
        for handle in hooks:
            handle.remove()
    return outputs, maxima


def _finite(task: BlockTask, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        _check_finite("the original output", batch, task.index)
        yield batch


def _learn_safely(
    task: BlockTask,
    simulated: SimulatedBlock,
    targets: Tensor,
    weights: Tensor,
    generator: torch.Generator,
    report: Report,
) -> None:
    """Learn in the precision that is asked for, and again in float32 where that fails."""
    start = {name: tensor.clone() for name, tensor in simulated.state_dict().items()}
    order = generator.get_state()
    if simulated.config.precision == "bfloat16":
        simulated.multiply_in(torch.bfloat16)
        try:
            _learn(task, simulated, targets, weights, generator, report)
        except CalibrationError as error:
            warnings.warn(
                f"{error} It is learned again in float32.", PrecisionWarning, stacklevel=2
            )
        else:
            return
        finally:
            simulated.multiply_in(None)
        simulated.load_state_dict(start)
        generator.set_state(order)
    _learn(task, simulated, targets, weights, generator, report)


def _learn(
    task: BlockTask,
    simulated: SimulatedBlock,
    targets: Tensor,
    weights: Tensor,
    generator: torch.Generator,
    report: Report,
) -> None:
    config, last = simulated.config, float("inf")
    n_batches = -(-len(targets) // config.batch_size)
    steps = Steps(task, simulated, config.epochs * n_batches)
    with simulated.installed():
        for epoch in range(config.epochs):
            order = torch.randperm(len(targets), generator=generator).split(config.batch_size)
            taken = [steps.take(task.received[r], targets[r], weights[r]) for r in order]
            # looked at once an epoch: an accelerator would wait for every look
            losses = torch.stack(taken).cpu()
            _check_losses(losses, epoch * n_batches, task.index)
            loss = float((losses * torch.tensor([len(rows) for rows in order])).sum())
            loss /= len(targets)
            enough = config.least_gain > 0 and last - loss < config.least_gain * last
            report(task.step(epoch + 1, epoch + 1 if enough else config.epochs, loss))
            if enough:
                break
            last = loss


def _check_losses(losses: Tensor, first: int, block: int) -> None:
    wrong = (~losses.isfinite()).nonzero()
    if len(wrong):
        step = int(wrong[0])
        _check_finite(f"the loss at step {first + step}", losses[step], block)


def _check_finite(name: str, value: Tensor, block: int) -> None:
    if not torch.isfinite(value).all():
        raise CalibrationError(
            f"calibration: {name} of block {block} is not finite; lower learning_rate and "
            "clip_learning_rate, or check the model's weights."
        )
