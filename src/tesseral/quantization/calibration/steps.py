"""Steps of the optimiser in one block."""

from math import cos, pi

import torch
from torch import Tensor

from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.calibration.ranks import Ranks
from tesseral.quantization.calibration.recording import Recording
from tesseral.quantization.calibration.task import BlockTask

_FINAL_RATE = 1e-3  # of the initial step sizes, at the end of the cosine


class Steps:
    """AdamW on the parameters of a block, with step sizes that fall by a cosine.

    On CUDA a step is some thousand small kernels, and launching them takes longer than running
    them: there it is a :class:`.recording.Recording`.

    Parameters
    ----------
    task : BlockTask
        The block, in which ``simulated`` is installed whenever a step is taken.
    simulated : SimulatedBlock
        What is learned.
    n_steps : int
        How many steps there will be.
    """

    def __init__(self, task: BlockTask, simulated: SimulatedBlock, n_steps: int) -> None:
        self._task, self._simulated, self._n_steps = task, simulated, n_steps
        self._done = 0
        self._device = next(task.block.parameters()).device
        with torch.no_grad():  # nothing recorded by autograd on another stream may live on
            simulated.refresh()
        if task.ranks is not None:
            task.ranks.follow_first(p.data for p in simulated.parameters())
        groups, on_gpu = simulated.parameter_groups(), self._device.type == "cuda"
        self._rates = [group["lr"] for group in groups]
        if on_gpu:
            # as tensors, so that a recorded step reads the present ones
            groups = [
                group | {"lr": torch.tensor(group["lr"], device=self._device)} for group in groups
            ]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True, capturable=on_gpu)
        self._recording = Recording(self._take, self._device) if on_gpu else None

    def take(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Take a step on some sequences; return the loss before it, a scalar on the device.

        Parameters
        ----------
        inputs, targets : (batch, length, hidden) tensor
            What enters the block, and what should leave it.
        weights : (batch, length, 1) tensor
            What the squared errors of each token are multiplied by.
        """
        self._set_rates()
        dtype = next(self._task.block.parameters()).dtype
        batch = [x.to(self._device, dtype) for x in self._shares(inputs, targets, weights)]
        self._done += 1
        if self._recording is not None:
            return self._recording.run(batch)
        return self._take(*batch)

    def _take(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        self._simulated.refresh()
        error = self._task.run(inputs) - targets
        loss = (error.square() * weights).mean()
        self._optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        if self._task.ranks is not None:
            self._sum(self._task.ranks, loss)
        self._optimizer.step()
        return loss

    def _sum(self, ranks: Ranks, loss: Tensor) -> None:
        """Sum slopes and loss over ranks, in place.

        A rank whose tokens chose other experts has slopes of other parameters. What no rank has a
        slope of keeps none, so that the optimiser leaves it alone.
        """
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        missing = [number for number, p in enumerate(parameters) if p.grad is None]
        slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        counts = loss.new_ones(len(parameters))
        if missing:
            counts[missing] = 0
        ranks.sum([*slopes, counts, loss])
        if missing:
            found = counts.tolist()
            for number in missing:
                parameters[number].grad = slopes[number] if found[number] else None

    def _shares(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return this rank's part of a step, weighed so that losses of ranks add up.

        A rank without a sequence takes the first one, which then counts nothing.
        """
        ranks = self._task.ranks
        if ranks is None:
            return tensors
        inputs, targets, weights = (ranks.share(rows) for rows in tensors)
        if len(inputs) == 0:
            inputs, targets, weights = (rows[:1] for rows in tensors)
            return inputs, targets, weights * 0
        return inputs, targets, weights * (len(inputs) / len(tensors[0]))

    def _set_rates(self) -> None:
        progress = self._done / self._n_steps
        factor = _FINAL_RATE + (1 - _FINAL_RATE) * 0.5 * (1 + cos(pi * progress))
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor
