"""Calibration of one block: learn what makes its rounded output match the original's."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from tesseral._errors import CalibrationError
from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.moments import second_moments
from tesseral.quantization.calibration.task import BlockTask, Report
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.experts import ExpertUse
from tesseral.quantization.freeze import frozen_state
from tesseral.quantization.numerics import working_dtype
from tesseral.quantization.placement import INPUT_SITES

_FINAL_RATE = 1e-3  # of the initial step sizes, at the end of the cosine


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
    if config.learns:
        _learn(task, simulated, outputs, generator, report)
    else:
        report(task.step(rare_experts=use.rare))
    moments = None
    if config.rounding == "gptq":
        moments = second_moments(simulated, lambda: task.run_all(task.received, config.batch_size))
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


def _learn(
    task: BlockTask,
    simulated: SimulatedBlock,
    targets: Tensor,
    generator: torch.Generator,
    report: Report,
) -> None:
    config = simulated.config
    n_batches = -(-len(targets) // config.batch_size)
    optimizer = torch.optim.AdamW(simulated.parameter_groups(), weight_decay=0.0, fused=True)
    schedule = _cosine(optimizer, config.epochs * n_batches)
    weights = _weights(targets, config.objective)
    with simulated.installed():
        for epoch in range(config.epochs):
            total = 0.0
            order = torch.randperm(len(targets), generator=generator)
            for step, rows in enumerate(order.split(config.batch_size)):
                simulated.refresh()
                output = task.run(task.received[rows])
                error = output - targets[rows].to(output)
                loss = (error.square() * weights[rows].to(output)).mean()
                _check_finite(f"the loss at step {epoch * n_batches + step}", loss, task.index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item() * len(rows)
            report(task.step(epoch + 1, config.epochs, total / len(targets)))


def _weights(targets: Tensor, objective: str) -> Tensor:
    """Return what squared errors are multiplied by, of shape (samples, length, 1)."""
    dtype = working_dtype(targets.dtype)
    power = torch.cat(
        [rows.to(dtype).square().mean(dim=-1, keepdim=True) for rows in targets.split(1)]
    )
    if objective == "mean":
        power = power.mean().expand_as(power)
    return 1 / power.clamp_min(torch.finfo(power.dtype).tiny)


def _cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    def factor(step: int) -> float:
        progress = torch.tensor(min(step / max(steps, 1), 1.0) * torch.pi)
        return _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + float(torch.cos(progress)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _check_finite(name: str, value: Tensor, block: int) -> None:
    if not torch.isfinite(value).all():
        raise CalibrationError(
            f"calibration: {name} of block {block} is not finite; lower learning_rate and "
            "clip_learning_rate, or check the model's weights."
        )
