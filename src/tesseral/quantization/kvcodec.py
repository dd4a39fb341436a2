"""How keys and values are transformed and stored in a cache."""

import torch
from torch import Tensor, nn

from tesseral.core.packed import PackedTensor
from tesseral.quantization.config import OFF
from tesseral.quantization.kernels.heads import HEADS, HeadsProblem, packed_heads
from tesseral.quantization.transforms.frozen import FrozenKronecker

_FEW = 2**14
"""Numbers of which calling an operation takes longer than what it does."""


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
        self.key_transform = FrozenKronecker([head_dim], dtype)
        self.query_transform = FrozenKronecker([head_dim], dtype)
        self.register_buffer("key_clip", torch.ones(2, dtype=dtype))
        self.register_buffer("value_clip", torch.ones(2, dtype=dtype))

    def transform_query(self, query: Tensor) -> Tensor:
        """Return queries of shape (..., head_dim) that fit transformed keys."""
        transformed: Tensor = self.query_transform(query).to(query.dtype)
        return transformed

    def encode(
        self, key: Tensor, value: Tensor
    ) -> tuple[Tensor | PackedTensor, Tensor | PackedTensor]:
        """Return keys and values of shape (batch, kv_heads, length, head_dim) as stored."""
        if not key.is_cpu:
            return (
                _on_device(key, self.key_transform, self.key_clip, self.key_bits),
                _on_device(value, None, self.value_clip, self.value_bits),
            )
        key = self.key_transform(key).to(key.dtype)
        alike = self.key_bits == self.value_bits != OFF and key.shape == value.shape
        if alike and key.numel() <= _FEW:
            clip = torch.stack((self.key_clip, self.value_clip))[:, None, None, None]
            both = encode_heads(torch.stack((key, value)), clip, self.key_bits)
            return both[0], both[1]
        return (
            encode_heads(key, self.key_clip, self.key_bits),
            encode_heads(value, self.value_clip, self.value_bits),
        )


def encode_heads(x: Tensor, clip: Tensor, bits: int) -> Tensor | PackedTensor:
    """Pack rows to asymmetric codes, or return them as they are when ``bits`` are off."""
    if bits == OFF:
        return x
    return packed_heads(x, clip, bits)


def _on_device(
    x: Tensor, transform: FrozenKronecker | None, clip: Tensor, bits: int
) -> Tensor | PackedTensor:
    """Transform and pack rows by the kernels for their device."""
    if bits == OFF:
        return x if transform is None else transform(x).to(x.dtype)
    problem = HeadsProblem(
        device=x.device.type,
        dtype=str(x.dtype).removeprefix("torch."),
        working_dtype=str(clip.dtype).removeprefix("torch."),
        head_dim=x.shape[-1],
        bits=bits,
    )
    factors = [None] if transform is None else transform.factors
    return HEADS.choose(problem).encode(x, factors, clip, bits)
