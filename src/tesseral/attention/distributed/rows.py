"""What a rank computes of a layer's rows: attention in strips as it is needed, then a product."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tesseral.attention.distributed.overlap import spans

Rows = Callable[[int, int], Tensor]
"""Returns what enters the projection for rows ``[start, stop)``: (rows * batch, features)."""


class Projected:
    """Products of rows with a weight, written to their place or added to what is there.

    Parameters
    ----------
    rows : callable
        Gives what is multiplied.
    weight : tensor of shape (hidden, features)
    """

    def __init__(self, rows: Rows, weight: Tensor) -> None:
        self._rows, self._weight = rows, weight

    def __call__(self, start: int, stop: int, part: Tensor, *, add: bool = False) -> None:
        """Write rows ``[start, stop)`` to ``part``, or add them to it before it is rounded."""
        place = part.view(-1, len(self._weight))
        rows = self._rows(start, stop)
        if add:
            place.addmm_(rows, self._weight.mT)
        else:
            torch.mm(rows, self._weight.mT, out=place)


class Strips:
    """Rows that are made some at a time, each strip when one of its rows is first asked for.

    Parameters
    ----------
    make : callable
        Returns what enters the projection for a strip ``[start, stop)``.
    sizes : sequence of int
        Rows of each strip.
    rows, batch : int
        Rows in all, and how many sequences each stands for.
    what : str
        Named in errors.
    """

    def __init__(self, make: Rows, sizes: Sequence[int], rows: int, batch: int, what: str) -> None:
        self._make, self._batch = make, batch
        self._spans = list(spans(sizes, rows, what=f"{what}: attention"))
        self._made: dict[int, Tensor] = {}

    def __call__(self, start: int, stop: int) -> Tensor:
        """Return rows ``[start, stop)``, which may lie in several strips."""
        found = []
        for first, end in self._spans:
            low, high = max(start, first), min(stop, end)
            if low < high:
                if first not in self._made:
                    self._made[first] = self._make(first, end)
                strip = self._made[first]
                found.append(strip[(low - first) * self._batch : (high - first) * self._batch])
        return found[0] if len(found) == 1 else torch.cat(found)
