"""Who is measured: plain sequences, computing alone, and plans."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tesseral.attention import attention
from tesseral.attention.distributed import (
    OverlapPlan,
    Peers,
    attention_all_reduce,
    linear_all_reduce,
)
from tesseral.attention.distributed.overlap import Reduce
from tesseral.bench.distributed.cases import Layer

Call = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How ranks sum.

    Attributes
    ----------
    reduce : callable, optional
        Another sum than that of ``dist``.
    group : ProcessGroup, optional
        For sums that something is computed beside.
    peers : Peers, optional
        Memory of the ranks, for plans that go through it.
    """

    reduce: Reduce | None = None
    group: Any = None
    peers: Peers | None = None

    def total(self, tensor: Tensor) -> None:
        """Sum a tensor, and wait for it."""
        if self.reduce is None:
            dist.all_reduce(tensor)
        else:
            self.reduce(tensor).wait()

    def arguments(self, plan: OverlapPlan) -> dict[str, Any]:
        """Return what a layer is called with."""
        if plan.through == "peers":
            return {"tiles": plan.tiles, "peers": self.peers}
        group = self.group if len(plan.tiles) > 1 else None
        return {"tiles": plan.tiles, "group": group, "reduce": self.reduce}


class AttentionSides:
    """Attention of this rank's heads, and its projection.

    Parameters
    ----------
    layer : Layer
        Of all ranks.
    length : int
        Tokens.
    dtype, device
        Of everything.
    """

    kv_len: int | None = None
    is_causal = True

    def __init__(self, layer: Layer, length: int, dtype: torch.dtype, device: torch.device) -> None:
        size, rank = dist.get_world_size(), dist.get_rank()
        random = torch.Generator(device).manual_seed(rank)
        heads, kv_heads, dim = layer.q_heads // size, layer.kv_heads // size, layer.head_dim

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device, dtype=dtype)

        self.query = draw(1, heads, length, dim)
        self.key, self.value = (draw(1, kv_heads, length, dim) for _ in range(2))
        self.weight = draw(layer.hidden, heads * dim) / (layer.q_heads * dim) ** 0.5

    def computed(self) -> Tensor:
        """Return this rank's part."""
        rows: Any = attention(self.query, self.key, self.value, is_causal=True)
        return torch.mm(rows.permute(0, 2, 1, 3).reshape(rows.shape[2], -1), self.weight.mT)

    def planned(self, plan: OverlapPlan, way: Way) -> Tensor:
        """Return the sum by a plan."""
        return attention_all_reduce(
            self.query,
            self.key,
            self.value,
            self.weight,
            is_causal=True,
            strips=plan.strips,
            **way.arguments(plan),
        )


class LinearSides:
    """The MLP's down projection of this rank's features; arguments as of the class above."""

    kv_len: int | None = 0
    is_causal = False

    def __init__(self, layer: Layer, length: int, dtype: torch.dtype, device: torch.device) -> None:
        random = torch.Generator(device).manual_seed(dist.get_rank())
        width = layer.intermediate // dist.get_world_size()

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, device=device, dtype=dtype)

        self.x = draw(1, length, width)
        self.weight = draw(layer.hidden, width) / layer.intermediate**0.5

    def computed(self) -> Tensor:
        """Return this rank's part."""
        return torch.mm(self.x[0], self.weight.mT)

    def planned(self, plan: OverlapPlan, way: Way) -> Tensor:
        """Return the sum by a plan."""
        return linear_all_reduce(self.x, self.weight, **way.arguments(plan))


Sides = AttentionSides | LinearSides


def plain(sides: Sides, way: Way) -> Call:
    """Return the plain sequence: compute all, then sum all."""

    def run() -> Tensor:
        out = sides.computed()
        way.total(out)
        return out

    return run
