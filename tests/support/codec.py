"""A small stand-in for the codec of quantised models."""

import torch
from torch import nn

from tesseral.core.packed import PackedTensor
from tesseral.llm.paged_rows import arrays_of


class FakeCodec(nn.Module):
    """Rotates keys, and keeps keys and values in so many bits; 16 leaves a side dense."""

    def __init__(self, head_dim: int, key_bits: int, value_bits: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(head_dim, head_dim, generator=generator)
        self.rotation = nn.Buffer(torch.linalg.qr(matrix).Q)
        self.key_bits, self.value_bits = key_bits, value_bits
        self.encoded_tokens = 0

    def transform_query(self, query):
        return query @ self.rotation

    def encode(self, key, value):
        return self.encode_key(key), self.encode_value(value)

    def encode_key(self, key, places=None):
        self.encoded_tokens += key.shape[-2]
        return _stored(_encode(key @ self.rotation, self.key_bits), places)

    def encode_value(self, value, places=None):
        return _stored(_encode(value, self.value_bits), places)


def _encode(x, bits):
    if bits == 16:
        return x
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    codes = torch.round((x - low) / scale).to(torch.uint8)
    return PackedTensor.from_codes(codes, scale, low, bits=bits)


def _stored(encoded, places):
    if places is not None:
        for place, array in zip(places, arrays_of(encoded), strict=True):
            place.copy_(array)
    return encoded


def attach_codecs(model, key_bits: int, value_bits: int):
    """Give every attention module of ``model`` a codec of its own, and return the model."""
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        attention.kv_codec = FakeCodec(attention.head_dim, key_bits, value_bits, seed=index)
    return model
