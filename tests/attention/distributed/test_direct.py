"""Sums through peers' memory: the result of one device, the same bits on all ranks.

Memory is full of NaN at first; later calls have other inputs, so what an earlier one left is wrong.
"""

import pytest
import torch

from support.peers import run_threads
from tesseral._errors import ParameterError
from tesseral.attention import attention
from tesseral.attention.distributed import attention_all_reduce, linear_all_reduce

ROWS, FEATURES, HIDDEN = 37, 12, 10
TILES = {"one": (37,), "some": (5, 16, 16), "many": (1,) * 3 + (2,) * 17}


def shards(size, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(1, ROWS, size * FEATURES, generator=random)
    return x, torch.randn(HIDDEN, size * FEATURES, generator=random)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("tiles", TILES.values(), ids=TILES)
def test_a_linear_layer_sums_its_shards(size, tiles):
    def work(peers):
        mine = slice(peers.rank * FEATURES, (peers.rank + 1) * FEATURES)
        found = []
        for seed in range(4):
            x, weight = shards(size, seed)
            out = linear_all_reduce(x[..., mine], weight[:, mine], tiles=tiles, peers=peers)
            found.append(out.clone())
        return found

    results = run_threads(work, size, rows=ROWS + 64, width=HIDDEN)
    for seed in range(4):
        x, weight = shards(size, seed)
        oracle = x.double() @ weight.double().mT
        for rank in results:
            torch.testing.assert_close(rank[seed].double(), oracle, rtol=2e-5, atol=2e-5)
            torch.testing.assert_close(rank[seed], results[0][seed], rtol=0, atol=0)


@pytest.mark.parametrize("size", [2, 3])
def test_attention_is_summed_over_heads_whatever_the_strips(size):
    heads, dim = 6, 8
    random = torch.Generator().manual_seed(7)
    query, key, value = torch.randn(3, 2, heads, ROWS, dim, generator=random)
    weight = torch.randn(HIDDEN, heads * dim, generator=random)

    def work(peers):
        mine = slice(peers.rank * heads // size, (peers.rank + 1) * heads // size)
        columns = slice(mine.start * dim, mine.stop * dim)
        return [
            attention_all_reduce(
                *(part[:, mine] for part in (query, key, value)),
                weight[:, columns],
                is_causal=True,
                tiles=(5, 16, 16),
                strips=strips,
                peers=peers,
            ).clone()
            for strips in (None, (37,), (17, 20))
        ]

    parts = (part.double() for part in (query, key, value))
    whole = attention(*parts, is_causal=True).permute(0, 2, 1, 3).flatten(2)
    oracle = whole @ weight.double().mT
    for found in run_threads(work, size, rows=2 * ROWS + 64, width=HIDDEN):
        for out in found:
            torch.testing.assert_close(out.double(), oracle, rtol=2e-5, atol=2e-5)


def test_tiles_that_do_not_add_up_are_refused_before_anything_is_sent():
    with pytest.raises(ParameterError, match="do not make up 37"):
        linear_all_reduce(torch.ones(1, 37, 2), torch.ones(3, 2), tiles=(36,), peers=object())
    query = torch.zeros(1, 1, 37, 2)
    with pytest.raises(ParameterError, match=r"attention: tiles of \(36,\) rows do not make up 37"):
        attention_all_reduce(query, query, query, torch.ones(3, 2), strips=(36,), peers=object())
