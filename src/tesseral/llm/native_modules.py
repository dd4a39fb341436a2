"""Blocks, norms and the output layer of a quantised model through kernels, where these serve."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tesseral.core.few_rows import DENSE_MOST, DENSE_MULTIPLE, dense_rows, norm_rows
from tesseral.llm.native_block import BLOCKS, NativeBlock
from tesseral.llm.native_model import MODELS, NativeModel
from tesseral.runtime.threads import threads_beside_torch

_NORMS = frozenset(
    f"{name}RMSNorm"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Mixtral", "Qwen3Moe")
)
"""transformers' norms that scale ``x / sqrt(mean(x^2) + eps)``, once rounded, by a weight."""


_MLPS = frozenset(
    f"{name}MLP"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma2", "Gemma3", "Olmo2")
)
"""transformers' MLPs, which treat each token by itself."""

_TOKENS = 1024
"""Tokens that an MLP takes at a time: its hidden states are the largest arrays of a long prompt."""


def use_native_modules(model: Any) -> None:
    """Let a model's blocks, norms and output layer run through our kernels.

    A module keeps its weights and the name of its class. Whatever its kernel does not take,
    another device or a gradient, say, is done as before.
    """
    for module in model.modules():
        if type(module).__name__ in _NORMS:
            _join(module, _Norm)
        elif type(module).__name__ in BLOCKS:
            _join(module, NativeBlock)
        elif type(module).__name__ in _MLPS:
            _join(module, _Mlp)
        elif type(module).__name__ in MODELS:
            _join(module, NativeModel)
    output = model.get_output_embeddings()
    if type(output) is nn.Linear and output.bias is None:
        _join(output, _Output)


def _join(module: nn.Module, how: type) -> None:
    if not isinstance(module, how):
        original: Any = type(module)
        module.__class__ = _joined(how, original)


@cache
def _joined(how: type, original: type) -> type:
    return type(original.__name__, (how, original), {"__module__": original.__module__})


class _Norm(nn.Module):
    """Before a class of norms: the same through a kernel."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the scaled rows."""
        weight: Any = self._parameters["weight"]
        x = hidden_states
        if not _takes(x, weight) or x.dtype not in (torch.float32, torch.bfloat16):
            original: Tensor = super().forward(x)
            return original
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        out = torch.empty(x.shape, dtype=x.dtype)
        norm_rows(rows, weight, self.variance_epsilon, out, threads=threads_beside_torch())
        return out


class _Mlp(nn.Module):
    """Before a class of MLPs: long prompts piece by piece."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP's output for each token."""
        whole: Callable[[Tensor], Tensor] = super().forward
        n_tokens = x.shape[:-1].numel()
        if n_tokens <= _TOKENS or not x.is_cpu or (torch.is_grad_enabled() and x.requires_grad):
            return whole(x)
        rows = x.reshape(n_tokens, x.shape[-1])
        out = torch.empty_like(rows)
        for start in range(0, n_tokens, _TOKENS):
            out[start : start + _TOKENS] = whole(rows[start : start + _TOKENS])
        return out.view(x.shape)


class _Output(nn.Module):
    """Before a dense layer: few rows at the speed of memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x weight^T``."""
        weight: Any = self._parameters["weight"]
        rows = x.reshape(-1, x.shape[-1])
        few = 0 < len(rows) <= DENSE_MOST and x.shape[-1] % DENSE_MULTIPLE == 0
        if not few or not _takes(x, weight) or x.dtype not in (torch.float32, torch.bfloat16):
            original: Tensor = super().forward(x)
            return original
        out = torch.empty(len(rows), len(weight), dtype=x.dtype)
        dense_rows(rows.contiguous(), weight, out, threads=threads_beside_torch())
        return out.view(*x.shape[:-1], len(weight))


def _takes(x: Tensor, weight: Tensor) -> bool:
    """Whether these are of one type on the CPU, and nobody wants a gradient."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return x.is_cpu and weight.is_cpu and x.dtype == weight.dtype and not wanted
