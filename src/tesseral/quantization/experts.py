"""Experts of a mixture whose linear layers are modules, so that each can be quantised.

transformers holds the weights of all experts of a block in two tensors of three axes. Here
they are taken apart, without a copy: expert ``i`` has a layer ``gate_up_proj``, whose rows are
those of the gate and then those of up, and a layer ``down_proj``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tesseral._errors import UnsupportedModelError

FEW = 0.1
"""An expert is rarely used if it gets fewer tokens than this part of an even share."""


class Expert(nn.Module):
    """A gated MLP: ``down(act(gate) * up)``, with gate and up out of one layer.

    Parameters
    ----------
    gate_up, down : module
        Linear layers, of ``2 n`` and from ``n`` channels.
    activation : callable
        What the gate passes through.
    """

    def __init__(
        self, gate_up: nn.Module, down: nn.Module, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up, down
        self.act_fn = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return the expert's output for tokens of shape (tokens, hidden)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        output: Tensor = self.down_proj(self.act_fn(gate) * up)
        return output


class Experts(nn.Module):
    """Experts by number, called as transformers calls the module in whose place they stand.

    Parameters
    ----------
    gate_up : tensor of shape (experts, 2 intermediate, hidden)
        Weights; kept as views.
    down : tensor of shape (experts, hidden, intermediate)
        The same.
    activation : callable
        Of every expert.
    """

    def __init__(
        self, gate_up: Tensor, down: Tensor, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.count = len(gate_up)
        for number in range(self.count):
            expert = Expert(_linear(gate_up[number]), _linear(down[number]), activation)
            self.add_module(str(number), expert)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs.

        Parameters
        ----------
        hidden_states : tensor of shape (tokens, hidden)
        top_k_index : integer tensor of shape (tokens, chosen)
            Numbers of the experts that each token chose, no expert twice.
        top_k_weights : tensor of shape (tokens, chosen)
            Their weights.
        """
        output = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():
            token, place = torch.where(top_k_index == number)
            part = self.get_submodule(str(number))(hidden_states[token])
            part = part * top_k_weights[token, place, None]
            output.index_add_(0, token, part.to(output.dtype))
        return output


class ExpertUse:
    """Counts the tokens that each of a block's experts gets while it is watched."""

    def __init__(self) -> None:
        self._tokens: Tensor | int = 0

    @contextmanager
    def watched(self, block: nn.Module) -> Iterator[None]:
        """Count what passes the block's experts, if it has some."""
        handles = [
            module.register_forward_pre_hook(self._count)
            for module in block.modules()
            if isinstance(module, Experts)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, experts: Experts, arguments: tuple[Tensor, ...]) -> None:
        self._tokens = self._tokens + arguments[1].flatten().bincount(minlength=experts.count)

    @property
    def rare(self) -> tuple[int, ...]:
        """Numbers of the experts that got few tokens; see :data:`FEW`."""
        tokens = torch.atleast_1d(torch.as_tensor(self._tokens).double())
        few: list[int] = torch.where(tokens < FEW * tokens.mean())[0].tolist()
        return tuple(few)


def take_apart(block: nn.Module, name: str) -> int:
    """Put :class:`Experts` in place of a block's fused experts, if they are not there yet.

    Returns
    -------
    int
        How many experts there are.

    Raises
    ------
    UnsupportedModelError
        If the module does not hold weights in the form expected.
    """
    module: Any = block.get_submodule(name)
    if isinstance(module, Experts):
        return module.count
    gate_up: Any = getattr(module, "gate_up_proj", None)
    down: Any = getattr(module, "down_proj", None)
    if not _fit(gate_up, down):
        raise UnsupportedModelError(
            f"quantization: {name!r} in a {type(block).__name__} should hold weights gate_up_proj "
            "of shape (experts, 2 intermediate, hidden) and down_proj of shape (experts, hidden, "
            f"intermediate), found {_described(gate_up)} and {_described(down)}."
        )
    experts = Experts(gate_up.detach(), down.detach(), module.act_fn)
    block.set_submodule(name, experts.requires_grad_(gate_up.requires_grad))
    return experts.count


def _linear(weight: Tensor) -> nn.Linear:
    """Return a layer around a weight, which is not copied."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight)
    return linear


def _fit(gate_up: Any, down: Any) -> bool:
    if not all(isinstance(w, Tensor) and w.ndim == 3 for w in (gate_up, down)):
        return False
    count, hidden, intermediate = down.shape
    return bool(gate_up.shape == (count, 2 * intermediate, hidden))


def _described(weight: Any) -> str:
    return f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "none"
