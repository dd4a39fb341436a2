"""What of a model decides about the memory that a context takes."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.core.packing import packed_length, storage_bits
from tesseral.llm.budget import inner_size
from tesseral.llm.cache import windows_of
from tesseral.llm.division import check_heads, divides_heads, head_ranks, heads_of
from tesseral.llm.footprint import disk_bytes, held_bytes
from tesseral.llm.loading import quiet, read_config, stored_dtype
from tesseral.llm.quantizer import METHOD, TesseralConfig
from tesseral.quantization.config import OFF

DENSE_TOKENS = 32768
"""Tokens of codes that are made numbers of at once."""

_SCALES = 4  # bytes of scale and offset, for a token and head
_RESERVE = 192 << 20  # of libraries' work space
# what the allocator reserves for activations, over what they are reckoned to take: on an H200, 8192
# tokens of an 8 B Llama, reckoned at 0.94 GB, took 1.02 GB, and gaps between them 0.35 GB
_GAPS = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What of a model decides about memory.

    Attributes
    ----------
    weight_bytes : int
        Of parameters and buffers.
    windows : tuple of (int or None)
        Size of each layer's sliding window, ``None`` where it sees everything.
    q_heads, kv_heads, head_dim, hidden, inner, vocabulary : int
        Sizes; ``inner`` are the channels inside the MLP, of all experts that a token chooses.
    dtype : torch.dtype
        Of activations, and of keys and values that are not quantised.
    key_bits, value_bits : int
        Widths of the codes; 16 are numbers of ``dtype``.
    """

    weight_bytes: int
    windows: tuple[int | None, ...]
    q_heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocabulary: int
    dtype: torch.dtype
    key_bits: int
    value_bits: int

    @property
    def token_bytes(self) -> int:
        """Bytes that keys and values of one token take in one layer."""
        return self.kv_heads * sum(self._head_bytes(b) for b in (self.key_bits, self.value_bits))

    def _head_bytes(self, bits: int) -> int:
        if bits == OFF:
            return self.head_dim * self.dtype.itemsize
        return packed_length(self.head_dim, storage_bits(bits)) + _SCALES


def longest(model: PreTrainedModel | str | Path) -> int:
    """Return the most tokens that a model, or the model in a directory, can read."""
    text = _config_of(model).get_text_config(decoder=True)
    most: int = text.max_position_embeddings
    return most


def _config_of(model: PreTrainedModel | str | Path) -> Any:
    if isinstance(model, str | Path):
        read_config(Path(model))  # says what is wrong with a directory that is none
        with quiet():
            return AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    return model.config


def describe(
    model: PreTrainedModel | str | Path,
    kv_bits: int | None = None,
    what: str = "plan_memory",
    *,
    ranks: int = 1,
) -> Shape:
    """Return what of a model, or a model directory to be divided, decides about a rank's memory."""
    if isinstance(model, str | Path):
        path = Path(model)
        dtype = stored_dtype(path, read_config(path))
        config = _config_of(path)
        weights, own = disk_bytes(path), _stored_bits(config)
    else:
        dtype, weights, config = model.dtype, held_bytes(model), model.config
        own = _bits_of_codecs(model)
    text: Any = config.get_text_config(decoder=True)
    shared = head_ranks(model)
    if isinstance(model, str | Path) and ranks > 1:
        if divides_heads(config):
            check_heads(config, ranks)
            shared = ranks
        whole = text.vocab_size * text.hidden_size * dtype.itemsize
        whole *= 1 if config.tie_word_embeddings else 2
        weights = whole + -(-max(0, weights - whole) // ranks)
    bits = _checked_bits(own, kv_bits, what)
    kinds = set(getattr(text, "layer_types", None) or ())
    ordinary = kinds <= {"full_attention", "sliding_attention"}
    if config.is_encoder_decoder or not ordinary or getattr(text, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"{what}: {text.model_type} has layers other than full and sliding attention of "
            "a decoder; use transformers' own caches for it."
        )
    q_heads, kv_heads, width = heads_of(text, shared)
    return Shape(
        weight_bytes=weights,
        windows=tuple(windows_of(text)),
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=width,
        hidden=text.hidden_size,
        inner=inner_size(text),
        vocabulary=text.vocab_size,
        dtype=dtype,
        key_bits=bits[0],
        value_bits=bits[1],
    )


def _checked_bits(own: tuple[int, int] | None, asked: int | None, what: str) -> tuple[int, int]:
    """Return the widths of keys and values: a quantised model's own, or what is asked for."""
    if asked is not None and asked not in (4, 8, OFF):
        raise ParameterError(f"{what}: kv_bits must be 16, 8 or 4, got {asked}.")
    if own is None:
        return (asked or OFF,) * 2
    if asked is not None and {asked} != set(own):
        raise ParameterError(
            f"{what}: kv_bits={asked} does not fit a model that keeps its keys in {own[0]} "
            f"and its values in {own[1]} bits; leave it out."
        )
    return own


def _stored_bits(config: Any) -> tuple[int, int] | None:
    """Return the widths of a checkpoint's keys and values, the widest of all layers."""
    description = getattr(config, "quantization_config", None)
    if not isinstance(description, dict) or description.get("quant_method") != METHOD:
        return None
    settings = TesseralConfig(**description).settings
    text = config.get_text_config(decoder=True)
    blocks = [settings.in_block(index).cache_bits for index in range(text.num_hidden_layers)]
    return max(key for key, _ in blocks), max(value for _, value in blocks)


def _bits_of_codecs(model: PreTrainedModel) -> tuple[int, int] | None:
    """Return the widths of a model's codecs, the widest; ``None`` where it has none."""
    codecs = [codec for m in model.modules() if (codec := getattr(m, "kv_codec", None)) is not None]
    if not codecs:
        return None
    return max(c.key_bits for c in codecs), max(c.value_bits for c in codecs)


def activation_bytes(shape: Shape, tokens: int, batch: int) -> int:
    """Return what ``tokens`` tokens need on their way through a block, and libraries beside it."""
    size, width = shape.dtype.itemsize, shape.q_heads * shape.head_dim
    mlp = tokens * size * (3 * shape.inner + 3 * shape.hidden)
    # queries before and after rotation; outputs of strips, in float32 while they are summed up
    attention = tokens * (4 * size * shape.hidden + width * (4 * size + 12))
    dense = 0
    if (shape.key_bits, shape.value_bits) != (OFF, OFF):
        dense = prod((batch, DENSE_TOKENS, shape.kv_heads, shape.head_dim)) * 2 * size
    logits = batch * shape.vocabulary * (size + 8)
    return int(_GAPS * max(mlp, attention + dense)) + logits + _RESERVE
