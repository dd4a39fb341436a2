"""Who is measured on a CUDA device: each takes a case and returns a function of the arrays."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tesseral.attention import attention
from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.device.cases import (
    COPY,
    CUDNN,
    EFFICIENT,
    FLASH,
    FLEX,
    OUR_FP16,
    READ,
    SDPA,
    UNFUSED,
)

Side = Callable[[Tensor, Any, Any], Any]
Prepare = Callable[[Case], Side]


def ours(case: Case, backend: str) -> Side:
    """Return our attention, by one backend."""

    def run(query: Tensor, key: Any, value: Any) -> Any:
        return attention(query, key, value, is_causal=case.causal, backend=backend)

    return run


def _sdpa(kernel: str | None) -> Prepare:
    """Return torch's attention: by one of its kernels, or by the one it chooses."""

    def prepare(case: Case) -> Side:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        shared = case.q_heads != case.kv_heads

        def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            chosen: Any = nullcontext()
            if kernel is not None:
                chosen = sdpa_kernel(getattr(SDPBackend, kernel))
            with chosen:
                return scaled_dot_product_attention(
                    query, key, value, is_causal=case.causal, enable_gqa=shared
                )

        return run

    return prepare


def _flex(case: Case) -> Side:
    """Return compiled FlexAttention, whose causal calls skip tiles by a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    blocks = None
    if case.causal:
        blocks = create_block_mask(
            lambda _batch, _head, row, column: row >= column,
            None, None, case.q_len, case.kv_len, device="cuda",
        )  # fmt: skip

    def run(query: Tensor, key: Tensor, value: Tensor) -> Any:
        return compiled(query, key, value, block_mask=blocks)

    return run


def _unfused(case: Case) -> Side:
    """Return the definition in three operations."""
    scale = case.head_dim**-0.5

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax((query @ key.transpose(-1, -2)) * scale, -1) @ value

    return run


def _copy(case: Case) -> Side:
    """Return a copy that reads half as many bytes as keys and values have, and writes as many."""
    room = torch.empty((2, case.kv_bytes // 2), dtype=torch.uint8, device="cuda")

    def run(query: Tensor, key: Any, value: Any) -> Tensor:  # noqa: ARG001
        return room[0].copy_(room[1])

    return run


def _read(_case: Case) -> Side:
    """Return what reads keys and values, and does nothing with them."""
    from tesseral.bench.attention.device.reading import reader

    read = reader()

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ARG001
        return read(key, value)

    return run


SIDES: Mapping[str, Prepare] = {
    OUR_FP16: lambda case: ours(case, "triton"),
    FLASH: _sdpa("FLASH_ATTENTION"),
    EFFICIENT: _sdpa("EFFICIENT_ATTENTION"),
    CUDNN: _sdpa("CUDNN_ATTENTION"),
    SDPA: _sdpa(None),
    FLEX: _flex,
    UNFUSED: _unfused,
    COPY: _copy,
    READ: _read,
}
"""By the name of a peer."""

SAME = frozenset({FLASH, EFFICIENT, CUDNN, SDPA, FLEX, UNFUSED})
"""Those that compute our result from our arrays."""
