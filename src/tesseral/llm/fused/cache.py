"""Room for the encoded keys and values of a fixed number of tokens, which a graph can write to."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.core.packing import packed_length, storage_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedCache:
    """Keys and values of all layers, in arrays that neither move nor grow.

    Attributes
    ----------
    layers : list of pairs of PackedTensor of shape (batch, kv_heads, room, head_dim)
        Keys and values; slots from ``place`` on hold nothing yet.
    place : int64 tensor of shape (1,)
        Number of tokens held, on the device.
    """

    layers: list[tuple[PackedTensor, PackedTensor]]
    place: Tensor

    @classmethod
    def empty(
        cls,
        bits: list[tuple[int, int]],
        shape: tuple[int, int, int],
        head_dim: int,
        device: torch.device,
    ) -> Self:
        """Return a cache for layers with keys and values of ``bits``, and (batch, heads, room)."""

        def side(width: int) -> PackedTensor:
            stored = storage_bits(width)
            size = packed_length(head_dim, stored)
            scale, offset = torch.zeros(2, *shape, 1, dtype=torch.float16, device=device)
            data = torch.zeros(*shape, size, dtype=torch.uint8, device=device)
            return PackedTensor(data=data, scale=scale, offset=offset, bits=stored, length=head_dim)

        return cls(
            layers=[(side(keys), side(values)) for keys, values in bits],
            place=torch.zeros(1, dtype=torch.int64, device=device),
        )

    @property
    def room(self) -> int:
        """Number of tokens that fit."""
        return self.layers[0][0].shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


def check_room(n_bytes: int, device: torch.device, batch: int, room: int) -> None:
    """Refuse a cache that the device has no room for.

    Raises
    ------
    MemoryError
        With what is needed, what is free, and what to change.
    """
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if n_bytes > free:
        raise MemoryError(
            f"FusedDecoder: a cache for {batch} sequences of {room} tokens needs "
            f"{n_bytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on {device}; take fewer or "
            "shorter sequences, or fewer bits for keys and values."
        )
