"""Encoded keys and values as rows of bytes, which a cache of any kind can store and copy."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeAlias

import torch

from tesseral.core.packed import PackedTensor

States: TypeAlias = torch.Tensor | PackedTensor
"""Keys or values: a tensor as the model computed it, or one that a codec encoded."""


class RowLayout:
    """Where codes, scales and offsets of one token and head lie in a row of bytes.

    Parameters
    ----------
    like : PackedTensor or tensor of shape (..., head_dim)
        An encoding as the rows shall hold them; only its types and its last axes are read.

    Attributes
    ----------
    nbytes : int
        Length of a row.
    alignment : int
        Rows are to be as long as a multiple of this.
    """

    def __init__(self, like: States) -> None:
        self._like = like
        self._fields: list[tuple[int, int, torch.dtype]] = []
        end = 0
        for array in arrays_of(like):
            start = -(-end // array.itemsize) * array.itemsize
            end = start + array.shape[-1] * array.itemsize
            self._fields.append((start, end, array.dtype))
        # so that numbers of the next row begin where numbers of their size may
        self.alignment = max(array.itemsize for array in arrays_of(like))
        self.nbytes = -(-end // self.alignment) * self.alignment

    def write(self, states: States, width: int) -> torch.Tensor:
        """Return states of shape (..., head_dim) as rows (..., width) of uint8."""
        arrays = arrays_of(states)
        rows = arrays[0].new_zeros((*arrays[0].shape[:-1], width), dtype=torch.uint8)
        for field, array in zip(self._views(rows), arrays, strict=True):
            field.copy_(array)
        return rows

    def read(self, rows: torch.Tensor) -> States:
        """Return what rows (..., width) hold as views of them, of shape (..., head_dim)."""
        views = self._views(rows)
        if not isinstance(self._like, PackedTensor):
            return views[0]
        data, scale, *offset = views
        return replace(self._like, data=data, scale=scale, offset=offset[0] if offset else None)

    def _views(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [rows[..., start:end].view(dtype) for start, end, dtype in self._fields]


def arrays_of(states: States) -> list[torch.Tensor]:
    """Return the arrays that states consist of: codes, scales and offsets, or the numbers."""
    if not isinstance(states, PackedTensor):
        return [states]
    arrays = (states.data, states.scale, states.offset)
    return [array for array in arrays if array is not None]


def common_width(layouts: Iterable[RowLayout]) -> int:
    """Return the length of rows that hold any of the layouts."""
    pairs = [(layout.nbytes, layout.alignment) for layout in layouts]
    alignment = max(alignment for _, alignment in pairs)
    return -(-max(n_bytes for n_bytes, _ in pairs) // alignment) * alignment
