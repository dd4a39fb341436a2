"""The weights that every token reads, side by side in large pages.

Weights come mapped from their files, in small pages and at any address. A token reads all of them,
so look-ups of addresses, and lines that a vector straddles, cost a tenth of its time and more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from tesseral.quantization.config import OFF
from tesseral.quantization.linear import QuantizedLinear
from tesseral.runtime.large_pages import LARGE_PAGE, drop_mapped, mapped_weights, new_map

_LINE = 64
_PIECE = 2**24  # bytes copied before what was read of a file is given back
LEAST = 2**26
"""Bytes of weights below which nothing moves: caches hold much of them anyway."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor, the dictionary that holds it and the offset that it gets."""

    held: Any
    name: str
    tensor: Tensor
    offset: int

    def move(self, memory: Any, ranges: list[tuple[int, int]]) -> None:
        """Copy the tensor into the memory and let its owner hold the copy."""
        old, count = self.tensor, self.tensor.numel()
        new = torch.frombuffer(memory, dtype=old.dtype, count=count, offset=self.offset)
        step, size = _PIECE // old.element_size(), old.element_size()
        flat, begin = old.view(-1), old.data_ptr()
        for start in range(0, count, step):
            end = min(start + step, count)
            new[start:end] = flat[start:end]
            drop_mapped(begin + start * size, begin + end * size, ranges)
        if isinstance(old, nn.Parameter):
            old.data = new.view(old.shape)  # whoever shares it goes along
        else:
            self.held[self.name] = new.view(old.shape)


@torch.no_grad()
def gather_weights(model: nn.Module, least: int = LEAST) -> int:
    """Move packed weights and output embedding of a model on the CPU to large pages, in order.

    Parameters
    ----------
    model : module
        Values, names and types stay; addresses change.
    least : int
        Bytes below which nothing is moved.

    Returns
    -------
    int
        Bytes moved; 0 also where the system gives no large pages, or has not as much memory.
    """
    places = list(_places(model))
    total = places[-1].offset + places[-1].tensor.nbytes if places else 0
    fits = max(least, 1) <= total <= psutil.virtual_memory().available
    memory = new_map(total + LARGE_PAGE) if fits else None
    if memory is None:
        return 0
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % LARGE_PAGE
    ranges = mapped_weights()
    for place in places:
        moved = _Place(place.held, place.name, place.tensor, start + place.offset)
        moved.move(memory, ranges)
    return total


def _places(model: nn.Module) -> Iterator[_Place]:
    end = 0
    for held, name in _read_by_every_token(model):
        tensor = held[name]
        if tensor.is_cpu and tensor.is_contiguous() and tensor.numel():
            yield _Place(held, name, tensor, end)
            end += -(-tensor.nbytes // _LINE) * _LINE


def _read_by_every_token(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield dictionaries and names of packed weights and of a dense output embedding."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear) and module.bits != OFF:
            yield module._buffers, "weight_codes"
    output = model.get_output_embeddings()
    if isinstance(output, nn.Linear):
        yield output._parameters, "weight"
