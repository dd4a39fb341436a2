"""Keys and values are encoded together or one by one, with the same result."""

import pytest
import torch

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kvcodec import KVCodec, encode_heads


@pytest.mark.parametrize("length", [0, 1, 5, 700], ids="length{}".format)
@pytest.mark.parametrize("bits", [(4, 4), (8, 8), (3, 3), (4, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_each_side_is_encoded_with_its_own_clip_and_bits(length, bits, dtype):
    rng = torch.Generator().manual_seed(length)
    codec = KVCodec(6, key_bits=bits[0], value_bits=bits[1])
    factor = torch.randn(6, 6, generator=rng)
    codec.key_transform.factor0.copy_(factor)
    codec.key_clip.copy_(torch.tensor([0.5, 0.9]))
    codec.value_clip.copy_(torch.tensor([0.8, 1.0]))
    key, value = torch.randn(2, 2, 3, length, 6, generator=rng).to(dtype).unbind()
    got = codec.encode(key, value)
    rotated = (key.float() @ factor).to(dtype)
    expected = (
        encode_heads(rotated, codec.key_clip, bits[0]),
        encode_heads(value, codec.value_clip, bits[1]),
    )
    for side, other in zip(got, expected, strict=True):
        assert side.shape == (2, 3, length, 6)
        if isinstance(other, PackedTensor):
            assert side.bits == other.bits
            for name in ("data", "scale", "offset"):
                assert torch.equal(getattr(side, name), getattr(other, name))
        else:
            assert torch.equal(side, other)
