"""What a token passes by itself gives the same bits in any company; see docs/guides/serve.md."""

import pytest
import torch

from tesseral.attention import attention, attention_varlen
from tesseral.core.few_rows import DENSE_MOST, dense_rows, norm_rows
from tesseral.core.packed import PackedTensor
from tesseral.quantization.kvcodec import KVCodec

TYPES = [torch.float32, torch.bfloat16]


def changed(packed, change):
    """Return codes, scales and offsets after the same change of each."""
    parts = {name: change(getattr(packed, name)) for name in ("data", "scale", "offset")}
    return PackedTensor(**parts, bits=packed.bits, length=packed.length)


def encoded(dtype, keys, batch=1):
    torch.manual_seed(keys)
    codec = KVCodec(64, key_bits=4, value_bits=4)
    states = torch.randn(2, batch, 4, keys, 64).to(dtype)
    return codec, *codec.encode(*states)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_norms_and_few_rows_of_the_head_do_not_look_at_their_neighbours(dtype):
    rows, weight = torch.randn(DENSE_MOST, 64).to(dtype), torch.randn(300, 64).to(dtype)
    together, alone = torch.empty(DENSE_MOST, 300).to(dtype), torch.empty(1, 300).to(dtype)
    dense_rows(rows, weight, together)
    dense_rows(rows[2:3].contiguous(), weight, alone)
    assert torch.equal(together[2:3], alone)
    normed, one = torch.empty_like(rows), torch.empty_like(rows[:1])
    norm_rows(rows, weight[0], 1e-5, normed)
    norm_rows(rows[2:3], weight[0], 1e-5, one)
    assert torch.equal(normed[2:3], one)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_codes_of_keys_do_not_look_at_their_neighbours(dtype):
    codec, keys, _ = encoded(dtype, 30, batch=3)
    torch.manual_seed(30)
    states = torch.randn(2, 3, 4, 30, 64).to(dtype)
    alone, _ = codec.encode(states[0][1:2, :, 7:8], states[1][1:2, :, 7:8])
    assert torch.equal(alone.data, keys.data[1:2, :, 7:8])
    assert torch.equal(alone.scale, keys.scale[1:2, :, 7:8])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_query_on_keys_of_one_piece_does_not_look_at_other_sequences(dtype):
    _, keys, values = encoded(dtype, 300)
    query = torch.randn(1, 8, 1, 64).to(dtype)
    alone = attention(query, keys, values, is_causal=True)
    sixteen = [changed(side, lambda x: x.repeat(16, 1, 1, 1)) for side in (keys, values)]
    together = attention(query.repeat(16, 1, 1, 1), *sixteen, is_causal=True)
    assert all(torch.equal(row, alone[0]) for row in together)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_pages_add_in_another_order_and_change_no_more_than_last_bits(dtype):
    _, keys, values = encoded(dtype, 300)
    query = torch.randn(1, 8, 1, 64).to(dtype)
    alone = attention(query, keys, values, is_causal=True)[0, :, 0]

    def paged(size):
        n_pages = -(-300 // size)

        def pool(x):
            tokens = x[0].transpose(0, 1)
            tokens = torch.cat([tokens, tokens.new_zeros(n_pages * size - 300, *tokens.shape[1:])])
            return tokens.view(n_pages, size, *tokens.shape[1:])

        return attention_varlen(
            query[0].transpose(0, 1),
            changed(keys, pool),
            changed(values, pool),
            cu_seqlens_q=torch.tensor([0, 1], dtype=torch.int32),
            cu_seqlens_k=torch.tensor([0, 300], dtype=torch.int32),
            block_tables=torch.arange(n_pages)[None],
            is_causal=True,
        )[0]

    for size in (16, 512):  # values are about as large as one
        assert ((paged(size) - alone).abs() <= 4 * torch.finfo(dtype).eps).all()
