"""Arrays on a CUDA device."""

from dataclasses import replace

import torch

from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.device.cases import DeviceContest
from tesseral.bench.attention.inputs import Inputs, States
from tesseral.quantization.kvcodec import encode_heads

_CACHES = 4
"""How many times the L2 cache all copies of keys and values are, where calls must not find them."""


def make_device_inputs(contest: DeviceContest, case: Case | None = None) -> Inputs:
    """Return normal random arrays for a contest; ``case`` where a peer computes another one.

    A cold call reads the cache of another layer than the calls before, so there are as many
    copies of keys and values as the L2 cache cannot hold.
    """
    case = case or contest.case
    random = torch.Generator("cuda").manual_seed(0)
    shape = (case.batch, case.kv_heads, case.kv_len, case.head_dim)

    def draw(*shape: int) -> torch.Tensor:
        dtype = getattr(torch, case.dtype)
        return torch.randn(shape, generator=random, device="cuda", dtype=dtype)

    def states() -> States:
        side = draw(*shape)
        if case.kv_bits is None:
            return side
        return encode_heads(side, torch.ones(2, device="cuda"), case.kv_bits)

    query = draw(case.batch, case.q_heads, case.q_len, case.head_dim)
    return Inputs(query=query, states=tuple((states(), states()) for _ in range(_copies(contest))))


def dense(case: Case) -> Case:
    """Return the case with plain keys and values."""
    return replace(case, kv_bits=None)


def _copies(contest: DeviceContest) -> int:
    if not contest.case.decoding or contest.cache == "warm":
        return 1
    cache = torch.cuda.get_device_properties("cuda").L2_cache_size
    return max(1, -(-_CACHES * cache // contest.case.kv_bytes))
