"""One decoder block in few launches: ten kernels, whatever the number of tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tesseral.attention import attention
from tesseral.core.packed import PackedTensor
from tesseral.llm.fused.support import LINEARS
from tesseral.quantization.kernels.triton.heads import prepare_matrix, rotate_and_encode
from tesseral.quantization.kernels.triton.products import multiply, side_by_side
from tesseral.quantization.kernels.triton.rows import Norm, form_for, prepare, quantize_rows

TOKENS_AT_ONCE = 8192
"""Tokens that pass the MLP together."""


class FusedSite:
    """Rows that layers read, transformed and quantised in one launch, and their products in one.

    Parameters
    ----------
    layers : list of QuantizedLinear
        All layers that read the rows.
    dtype : torch.dtype
        Type of rows and products.
    norm : module, optional
        RMSNorm before the transform.
    """

    def __init__(self, layers: list[Any], dtype: torch.dtype, norm: Any = None) -> None:
        source = layers[0]._source[0]
        working = torch.float32 if dtype == torch.float32 else torch.float16
        self._bits, self._clip, self._dtype = source.bits, source.clip, dtype
        self._factors = prepare(layers[0].in_features, source.transform.factors, working)
        self._weights = side_by_side([layer.stored for layer in layers])
        self.sizes = [layer.out_features for layer in layers]
        self._norm: Norm | None = None
        if norm is not None:
            self._norm = Norm(weight=norm.weight, epsilon=norm.variance_epsilon)

    def __call__(
        self, x: Tensor, *, gate: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Return the products of rows (m, n), side by side, of shape (m, sum of outputs)."""
        form = form_for(x, self._bits)
        codes, scale = quantize_rows(
            x, self._factors, self._clip, self._bits, form=form, gate=gate, norm=self._norm
        )
        return multiply(codes, scale, self._weights, self._dtype, residual)


class FusedBlock:
    """A decoder block of two norms, attention with rotated heads, and a gated MLP.

    Parameters
    ----------
    block : module
        A quantised block of a model that :func:`~tesseral.llm.fused.support.supports`.
    dtype : torch.dtype
        Type of hidden states.
    site : callable
        Makes what :class:`FusedSite` is, of the same arguments.
    """

    def __init__(
        self, block: nn.Module, dtype: torch.dtype, site: Callable[..., FusedSite] = FusedSite
    ) -> None:
        modules: list[list[Any]] = [[block.get_submodule(n) for n in names] for names in LINEARS]
        attention_module: Any = block.self_attn
        codec = attention_module.kv_codec
        self.bits = codec.key_bits, codec.value_bits
        self.head_dim, self._scale = attention_module.head_dim, attention_module.scaling
        self._matrices = (
            prepare_matrix(codec.query_transform.factors[0], dtype),
            prepare_matrix(codec.key_transform.factors[0], dtype),
        )
        self._clips = codec.key_clip, codec.value_clip
        self._states = site(modules[0], dtype, block.input_layernorm)
        self._output = site(modules[1], dtype)
        self._gated = site(modules[2], dtype, block.post_attention_layernorm)
        self._down = site(modules[3], dtype)

    @property
    def kv_heads(self) -> int:
        """Number of key heads."""
        heads: int = self._states.sizes[1] // self.head_dim
        return heads

    def __call__(
        self,
        hidden: Tensor,
        turn: tuple[Tensor, Tensor],
        cache: tuple[PackedTensor, PackedTensor],
        place: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Return the block's output, and store the tokens' keys and values.

        Parameters
        ----------
        hidden : tensor of shape (batch, tokens, width)
            Contiguous.
        turn : pair of tensors
            Cosine and sine of the rotary embedding.
        cache : pair of PackedTensor
            Keys and values of this layer.
        place : int64 tensor of shape (1,)
            Slot of the first of the tokens.
        mask : boolean tensor that broadcasts to (batch, heads, tokens, room), or None
            Which slots are seen; ``None`` for the tokens alone, each seeing those before it.
        """
        batch, tokens, width = hidden.shape
        rows = hidden.view(-1, width)
        parts = self._states(rows).view(batch, tokens, -1).split(self._states.sizes, dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)) for part in parts)
        query, keys, values = rotate_and_encode(
            (query, key, value), turn, self._matrices, self._clips, cache, place, dense=mask is None
        )
        attended: Any
        if mask is None:
            attended = attention(query, keys, values, is_causal=True, scale=self._scale)
        else:
            attended = attention(query, *cache, mask=mask, scale=self._scale)
        attended = attended.transpose(1, 2).reshape(batch * tokens, -1)
        rows = self._output(attended, residual=rows)
        # as many tokens at once as keep what lies between the two small
        parts = [self._mlp(part) for part in rows.split(TOKENS_AT_ONCE)]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        return rows.view(batch, tokens, width)

    def _mlp(self, rows: Tensor) -> Tensor:
        gate, up = self._gated(rows).split(self._gated.sizes, dim=-1)
        return self._down(up, gate=gate, residual=rows)
