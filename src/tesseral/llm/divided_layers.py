"""Layers of which each rank holds a part: what they send to one another."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tesseral._errors import ParameterError
from tesseral.attention.distributed import OverlapCosts, Peers, choose_plan, linear_all_reduce
from tesseral.quantization.linear import QuantizedLinear
from tesseral.runtime.ranks import Step

_NAME = "tensor parallelism"


def gathered(x: Tensor, group: Any) -> Tensor:
    """Return the last axis of all ranks, one after the other."""
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    with Step(_NAME, f"gather {tuple(x.shape)}", group):
        dist.all_gather(parts, x, group=group)
    return torch.cat(parts, dim=-1)


class GatheredLinear(nn.Module):
    """A layer in our format with this rank's rows; its input and output are gathered.

    Parameters
    ----------
    linear : QuantizedLinear
        With this rank's rows.
    group : ProcessGroup or None
        The ranks.
    """

    def __init__(self, linear: QuantizedLinear, group: Any) -> None:
        super().__init__()
        self.linear, self._group = linear, group

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output for this rank's channels of the input."""
        return gathered(self.linear(gathered(x, self._group)), self._group)


class SummedLinear(nn.Module):
    """A dense layer with the columns of this rank, summed over ranks tile by tile.

    Parameters
    ----------
    linear : torch.nn.Linear
        The whole layer.
    group : ProcessGroup or None
        The ranks.
    """

    def __init__(self, linear: nn.Linear, group: Any) -> None:
        super().__init__()
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        columns = linear.weight.detach().chunk(size, dim=1)[rank].clone()
        self.weight = nn.Parameter(columns, requires_grad=False)
        self.bias = linear.bias
        self._group = group
        self.peers: Peers | None = None
        self.costs: OverlapCosts | None = None
        self._plans: dict[int, dict[str, Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output for this rank's channels of the input."""
        rows = x.reshape(1, -1, x.shape[-1]) if x.ndim != 3 else x
        out = linear_all_reduce(rows, self.weight, **self._how(rows.shape[1]))
        out = out.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def overlap(self, costs: OverlapCosts, peers: Peers | None = None) -> None:
        """Cut inputs into the tiles that these costs predict to be best."""
        self.costs, self.peers = costs, peers
        self._plans.clear()

    def _how(self, length: int) -> dict[str, Any]:
        if self.costs is None:
            return {"group": self._group}
        how = self._plans.get(length)
        if how is None:
            plan = choose_plan(self.costs, length, kv_len=0)
            how = {"tiles": plan.tiles, "group": self._group}
            if plan.through == "peers":
                how = {"tiles": plan.tiles, "peers": self.peers}
            self._plans[length] = how
        return how


class SplitLinear(SummedLinear):
    """The same for an input that every rank has whole; arguments as there."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output for the whole input."""
        size, rank = dist.get_world_size(self._group), dist.get_rank(self._group)
        return super().forward(x.chunk(size, dim=-1)[rank])


class GatheredOutput(nn.Module):
    """A layer with this rank's rows that has its input whole; its output is gathered.

    Parameters
    ----------
    linear : torch.nn.Linear or QuantizedLinear
        With this rank's rows.
    group : ProcessGroup or None
        The ranks.
    """

    def __init__(self, linear: nn.Module, group: Any) -> None:
        super().__init__()
        self.linear, self._group = linear, group

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output for the whole input."""
        return gathered(self.linear(x), self._group)


@torch.no_grad()
def divide_experts(experts: Any, group: Any) -> None:
    """Keep this rank's inner channels of every expert, and sum what all of them give over ranks.

    Parameters
    ----------
    experts : module
        Of transformers: ``gate_up_proj`` (experts, 2 inner, hidden), the gate's rows first, and
        ``down_proj`` (experts, hidden, inner). Changed in place.
    group : ProcessGroup or None
        The ranks.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    halves = [half.chunk(size, dim=1)[rank] for half in experts.gate_up_proj.chunk(2, dim=1)]
    down = experts.down_proj.chunk(size, dim=2)[rank].clone()
    experts.gate_up_proj = nn.Parameter(torch.cat(halves, dim=1), requires_grad=False)
    experts.down_proj = nn.Parameter(down, requires_grad=False)
    experts.intermediate_dim = down.shape[2]

    def total(_: nn.Module, given: Any, output: Tensor) -> Tensor:
        del given
        if torch.is_grad_enabled() and output.requires_grad:
            raise ParameterError(f"{_NAME}: gradients do not pass a sum; use torch.no_grad().")
        with Step(_NAME, f"sum experts' outputs {tuple(output.shape)}", group):
            dist.all_reduce(output, group=group)
        return output

    experts.register_forward_hook(total)
