"""Keys and values that stay where they lie: what a cache returns that attends by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PlacedStates:
    """Stands for keys and values of a layer, wherever they are.

    Attributes
    ----------
    shape : (batch, kv_heads, length, head_dim)
        Of the keys that it stands for.
    attend : callable
        Takes queries and the rules of :func:`tesseral.attention.attention`, as a dict; returns
        the output (batch, q_heads, q_len, value_dim).
    """

    shape: torch.Size
    attend: Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]
