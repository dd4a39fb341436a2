"""Second moments of what the linear layers of a quantised block read."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tesseral.quantization.block import SimulatedBlock


@torch.no_grad()
def second_moments(
    simulated: SimulatedBlock, run: Callable[[], Iterable[Tensor]]
) -> dict[str, Tensor]:
    """Return the second moments of each input site, transformed and rounded.

    Parameters
    ----------
    simulated : SimulatedBlock
        Calibrated parts; they are put in place while ``run`` runs.
    run : callable
        Runs the block over the calibration sequences, batch by batch.

    Returns
    -------
    dict of str to (width, width) tensor
        Sums over tokens of ``x^T x``, by the name of the site.
    """
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        last: list[Tensor] = []

        def hook(_: nn.Module, __: object, prepared: Tensor) -> None:
            # the readers of a site get the same tensor one after the other: count it once
            if last and last[0] is prepared:
                return
            last[:] = [prepared]
            rows = prepared.flatten(0, -2)
            sums[name] = sums.get(name, 0) + rows.mT @ rows

        return hook

    hooks = [source.register_forward_hook(watch(name)) for name, source in simulated.inputs.items()]
    try:
        with simulated.installed():
            simulated.refresh()
            for _ in run():
                pass
    finally:
        for handle in hooks:
            handle.remove()
    return sums
