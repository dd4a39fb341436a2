"""Second moments of what the linear layers of a quantised block read."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.task import BlockTask
from tesseral.quantization.linear import QuantizedActivation

Prepared: TypeAlias = Tensor | QuantizedActivation


@torch.no_grad()
def second_moments(
    simulated: SimulatedBlock, task: BlockTask, weights: Tensor
) -> dict[str, Tensor]:
    """Return the second moments of each input site, transformed and rounded.

    Parameters
    ----------
    simulated : SimulatedBlock
        Calibrated parts; they are put in place while the block runs.
    task : BlockTask
        Runs on ``task.received``.
    weights : (samples, length, 1) tensor
        How much each token counts; see :func:`.objective.token_weights`. Where tokens are
        spread over experts, all count alike.

    Returns
    -------
    dict of str to (width, width) tensor
        Sums over tokens of ``w x^T x``, by the name of the site.
    """
    sums: dict[str, Tensor] = {}
    present: list[Tensor] = []

    def watch(name: str) -> Callable[[nn.Module, object, Prepared], None]:
        last: list[Prepared] = []

        def hook(_: nn.Module, __: object, prepared: Prepared) -> None:
            # the readers of a site get the same object one after the other: count it once
            if last and last[0] is prepared:
                return
            last[:] = [prepared]
            rows = prepared if isinstance(prepared, Tensor) else prepared.dequantize()
            rows = rows.flatten(0, -2)
            weight = present[0].to(rows).flatten(0, -2)
            weighed = rows * weight if len(weight) == len(rows) else rows
            sums[name] = sums.get(name, 0) + weighed.mT @ rows

        return hook

    hooks = [source.register_forward_hook(watch(name)) for name, source in simulated.inputs.items()]
    try:
        with simulated.installed():
            simulated.refresh()
            size = simulated.config.batch_size
            batches = zip(task.received.split(size), weights.split(size), strict=True)
            for batch, weight in batches:
                present[:] = [weight]
                task.run(batch)
    finally:
        for handle in hooks:
            handle.remove()
    return sums
