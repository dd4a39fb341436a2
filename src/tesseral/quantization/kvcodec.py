"""How keys and values are transformed and stored in a cache."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tesseral.core.packed import PackedTensor
from tesseral.core.packing import storage_bits
from tesseral.quantization.config import OFF
from tesseral.quantization.kernels.heads import (
    HEADS,
    HeadsBackend,
    Places,
    heads_problem,
    new_places,
)
from tesseral.quantization.transforms.frozen import FrozenKronecker


class KVCodec(nn.Module):
    """Transforms keys after their rotary embedding, and packs keys and values.

    Codes are asymmetric with one scale and offset per token and head, both float16.
    Queries take the inverse transpose of the keys' transform, so that scores are unchanged.

    Parameters
    ----------
    head_dim : int, optional
        Size of the keys' transform P_h; ``None`` for no transform.
    key_bits, value_bits : int
        Widths of the codes; 16 leaves that side dense.
    dtype : torch.dtype
        Type in which transforms and scales are computed.

    References
    ----------
    Sun, Liu et al. (2025), "FlatQuant", section 4.1.
    """

    key_clip: Tensor
    value_clip: Tensor

    def __init__(
        self,
        head_dim: int | None,
        *,
        key_bits: int,
        value_bits: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.key_bits, self.value_bits = key_bits, value_bits
        self._chosen: dict[tuple[Any, ...], HeadsBackend] = {}
        self.key_transform = FrozenKronecker([head_dim], dtype)
        self.query_transform = FrozenKronecker([head_dim], dtype)
        self.register_buffer("key_clip", torch.ones(2, dtype=dtype))
        self.register_buffer("value_clip", torch.ones(2, dtype=dtype))

    def transform_query(self, query: Tensor) -> Tensor:
        """Return queries of shape (batch, heads, length, head_dim) that fit transformed keys."""
        factor = _factor(self.query_transform)
        if factor is None or self.query_transform.is_watched:
            transformed: Tensor = self.query_transform(query)
            return transformed.to(query.dtype)
        return self._backend(query, OFF).transform(query, factor)

    def encode(
        self, key: Tensor, value: Tensor
    ) -> tuple[Tensor | PackedTensor, Tensor | PackedTensor]:
        """Return keys and values of shape (batch, kv_heads, length, head_dim) as stored."""
        return self.encode_key(key), self.encode_value(value)

    def encode_key(
        self, key: Tensor, places: Sequence[Tensor] | None = None
    ) -> Tensor | PackedTensor:
        """Return keys as stored; see :func:`encode_heads`."""
        factor = _factor(self.key_transform)
        if self.key_bits == OFF or self.key_transform.is_watched:
            key, factor = self.key_transform(key).to(key.dtype), None
        return self._encode(key, factor, self.key_clip, self.key_bits, places)

    def encode_value(
        self, value: Tensor, places: Sequence[Tensor] | None = None
    ) -> Tensor | PackedTensor:
        """Return values as stored; see :func:`encode_heads`."""
        return self._encode(value, None, self.value_clip, self.value_bits, places)

    def _encode(
        self,
        x: Tensor,
        factor: Tensor | None,
        clip: Tensor,
        bits: int,
        places: Sequence[Tensor] | None,
    ) -> Tensor | PackedTensor:
        backend = (
            None if bits == OFF else self._backend(x if not x.requires_grad else x.detach(), bits)
        )
        return encode_heads(x, clip, bits, factor=factor, places=places, backend=backend)

    def _backend(self, x: Tensor, bits: int) -> HeadsBackend:
        clip: Any = self._buffers["key_clip"]
        gradient = x.requires_grad and torch.is_grad_enabled()
        # for one token, choosing takes as long as encoding
        asked = x.dtype, clip.dtype, x.device.type, x.shape[-1], bits, gradient, HEADS.asked
        found = self._chosen.get(asked)
        if found is None:
            found = self._chosen[asked] = HEADS.choose(heads_problem(*asked[:-1]))
        return found


def encode_heads(
    x: Tensor,
    clip: Tensor,
    bits: int,
    *,
    factor: Tensor | None = None,
    places: Sequence[Tensor] | None = None,
    backend: HeadsBackend | None = None,
) -> Tensor | PackedTensor:
    """Pack heads to asymmetric codes, or return them as they are when ``bits`` are off.

    Parameters
    ----------
    x : tensor of shape (batch, heads, tokens, head_dim)
    clip, bits, factor
        As :class:`~tesseral.quantization.kernels.heads.HeadsBackend` takes them.
    places : sequence of tensors, optional
        Written and returned: codes, scales and offsets, or the numbers when bits are off. By
        default new ones.
    backend : HeadsBackend, optional
        Who encodes; torch's operations by default.
    """
    if bits == OFF:
        return x if places is None else places[0].copy_(x)
    found = new_places(x, bits) if places is None else Places(*places)
    (backend or HEADS.get("portable")).encode(x, factor, clip, bits, found)
    return PackedTensor(
        data=found.data,
        scale=found.scale,
        offset=found.offset,
        bits=storage_bits(bits),
        length=x.shape[-1],
    )


def _factor(transform: FrozenKronecker) -> Tensor | None:
    return transform.factors[0]
