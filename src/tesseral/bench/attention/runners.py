"""Ways to compute attention: ours, what it is without one of its parts, and others'."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tesseral.attention import attention
from tesseral.bench.attention.cases import OURS, Case
from tesseral.bench.attention.inputs import Runner


def ours(case: Case, query: Tensor, key: Any, value: Any) -> Any:
    """Call our attention."""
    return attention(query, key, value, is_causal=case.causal)


def sdpa(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call torch with as many key heads as query heads."""
    return scaled_dot_product_attention(query, key, value, is_causal=case.causal)


def enable_gqa(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call torch, which is told that query heads share keys."""
    return scaled_dot_product_attention(query, key, value, is_causal=case.causal, enable_gqa=True)


def folded(case: Case, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call torch on queries whose heads that share keys follow one another along the length.

    Exact where no query is hidden a key, and the fastest way to decode that torch offers.
    """
    batch, _, _, head_dim = query.shape
    rows = query.reshape(batch, case.kv_heads, -1, head_dim)
    return scaled_dot_product_attention(rows, key, value).view(query.shape)


RUNNERS: Mapping[str, Runner] = {
    OURS: ours,
    "our bf16": ours,
    "sdpa": sdpa,
    "enable_gqa": enable_gqa,
    "folded": folded,
}
"""By the name of a peer."""
