"""What a long context takes of a device's memory and of the host's, known before it is taken."""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import AutoConfig, PreTrainedModel

from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.core.packing import packed_length, storage_bits
from tesseral.llm.cache import windows_of
from tesseral.llm.footprint import disk_bytes, held_bytes
from tesseral.llm.loading import quiet, read_config, stored_dtype
from tesseral.llm.quantizer import METHOD, TesseralConfig
from tesseral.quantization.config import OFF

CHUNK = 8192
"""Tokens of a prompt that go through the model at once."""

DENSE_TOKENS = 32768
"""Tokens of codes that are made numbers of at once."""

_SCALES = 4  # bytes of scale and offset, for a token and head
_RESERVE = 192 << 20  # of libraries' work space
# what the allocator reserves for activations, over what they are reckoned to take: on an H200, 8192
# tokens of an 8 B Llama, reckoned at 0.94 GB, took 1.02 GB, and gaps between them 0.35 GB
_GAPS = 1.5
_STRIP_SHARE = 0.375  # of a layer's keys and values that a buffer holds, at most
_STRIP_BUDGET = 0.05  # of the device's memory that both buffers take, at most
_ROUND = 64


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
        Sizes; ``inner`` are the channels inside the MLP.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Where keys and values of a model will lie, and what everything takes.

    Attributes
    ----------
    context, batch, chunk : int
        Tokens of a sequence at most, sequences, and tokens of a prompt that are read at once.
    key_bits, value_bits : int
        Widths in which keys and values are kept; 16 are numbers of the model's type.
    gpu_bytes, host_bytes : int
        What may be taken.
    weight_bytes, activation_bytes : int
        Of the model, and of all that a chunk needs for a moment.
    layer_bytes : int
        Keys and values of one layer, all tokens; of layers with a sliding window, together,
        ``window_bytes``.
    strip_tokens, strip_bytes : int
        Two buffers on the device through which parts of the host's layers pass.
    host_layers : tuple of int
        Layers whose keys and values lie in the host's memory.
    n_layers : int
        All layers.
    refusal : str or None
        Why this cannot be run, and what could be.
    """

    context: int
    batch: int
    chunk: int
    key_bits: int
    value_bits: int
    gpu_bytes: int
    host_bytes: int
    weight_bytes: int
    activation_bytes: int
    layer_bytes: int
    window_bytes: int
    strip_tokens: int
    strip_bytes: int
    host_layers: tuple[int, ...]
    n_layers: int
    refusal: str | None = None

    @property
    def gpu_needed(self) -> int:
        """Bytes on the device."""
        near = self.n_layers - len(self.host_layers) - self._sliding
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.window_bytes
            + self.strip_bytes
            + near * self.layer_bytes
        )

    @property
    def host_needed(self) -> int:
        """Bytes of the host's memory."""
        return len(self.host_layers) * self.layer_bytes

    @property
    def gpu_layers(self) -> int:
        """How many layers keep keys and values on the device."""
        return self.n_layers - len(self.host_layers)

    _sliding: int = 0

    def require(self) -> "MemoryPlan":
        """Return the plan if it can be run.

        Raises
        ------
        ParameterError
            If not; says what could be.
        """
        if self.refusal is not None:
            raise ParameterError(self.refusal)
        return self

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return what takes how much, for people."""
        near = self.gpu_layers - self._sliding
        rows = [
            ["weights", _gb(self.weight_bytes), ""],
            [f"keys and values of {near} layers", _gb(near * self.layer_bytes), ""],
            [f"of {len(self.host_layers)} layers", "", _gb(self.host_needed)],
            ["of layers with a sliding window", _gb(self.window_bytes), ""],
            [f"activations of {self.chunk} tokens", _gb(self.activation_bytes), ""],
            ["buffers of what passes", _gb(self.strip_bytes), ""],
            ["all", _gb(self.gpu_needed), _gb(self.host_needed)],
            ["may be taken", _gb(self.gpu_bytes), _gb(self.host_bytes)],
        ]
        return ["what", "device", "host"], [row for row in rows if "0.00 GB" not in row]


def plan_memory(
    model: PreTrainedModel | str | Path,
    context: int,
    gpu_bytes: int,
    host_bytes: int | None = None,
    *,
    batch: int = 1,
    kv_bits: int | None = None,
    chunk: int | None = None,
) -> MemoryPlan:
    """Say where keys and values of a long context would lie; nothing is allocated.

    As many layers as fit keep theirs on the device: what is left there by weights, activations
    of a chunk and two buffers, over the bytes of a layer. Those of the others lie in the host's
    memory. These layers are spread evenly, so that what one copies hides behind the others.

    Parameters
    ----------
    model : transformers model, or a model directory
        Of a directory only its configuration is read.
    context : int
        Tokens of a sequence, those that are generated included.
    gpu_bytes : int
        Memory of the device that all may take.
    host_bytes : int, optional
        Memory of the host that keys and values may take; by default what is available.
    batch : int
        Sequences.
    kv_bits : {16, 8, 4}, optional
        Width in which keys and values are kept. By default that of a quantised model, and 16
        of another; a quantised model knows no other than its own.
    chunk : int, optional
        Tokens of a prompt that go through the model at once; by default 8192, or fewer where
        activations would take more than an eighth of the device.

    Returns
    -------
    MemoryPlan
        Also where it does not fit: :attr:`MemoryPlan.refusal` says why, and what would.

    Raises
    ------
    ParameterError
        If a number is out of range.
    UnsupportedModelError
        If the model has layers without ordinary keys and values.
    """
    host_bytes = psutil.virtual_memory().available if host_bytes is None else host_bytes
    numbers = {"context": context, "gpu_bytes": gpu_bytes, "batch": batch, "chunk": chunk or CHUNK}
    for name, number in numbers.items():
        if number < 1:
            raise ParameterError(f"plan_memory: {name} must be at least 1, got {number}.")
    shape = describe(model, kv_bits)
    found = _place(shape, context, gpu_bytes, host_bytes, batch, chunk)
    if found.refusal is None:
        return found
    return replace(found, refusal=f"{found.refusal} {_advice(shape, found, chunk)}")


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


def describe(model: PreTrainedModel | str | Path, kv_bits: int | None = None) -> Shape:
    """Return what of a model, or a model directory, decides about memory."""
    if isinstance(model, str | Path):
        path = Path(model)
        dtype = stored_dtype(path, read_config(path))
        config = _config_of(path)
        weights, own = disk_bytes(path), _stored_bits(config)
    else:
        dtype, weights, config = model.dtype, held_bytes(model), model.config
        own = _bits_of_codecs(model)
    text: Any = config.get_text_config(decoder=True)
    bits = _checked_bits(own, kv_bits)
    kinds = set(getattr(text, "layer_types", None) or ())
    if config.is_encoder_decoder or kinds - {"full_attention", "sliding_attention"}:
        raise UnsupportedModelError(
            f"plan_memory: {text.model_type} has layers other than full and sliding attention of "
            "a decoder; use transformers' own caches for it."
        )
    heads = text.num_attention_heads
    return Shape(
        weight_bytes=weights,
        windows=tuple(windows_of(text)),
        q_heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        hidden=text.hidden_size,
        inner=text.intermediate_size,
        vocabulary=text.vocab_size,
        dtype=dtype,
        key_bits=bits[0],
        value_bits=bits[1],
    )


def _checked_bits(own: tuple[int, int] | None, asked: int | None) -> tuple[int, int]:
    """Return the widths of keys and values: a quantised model's own, or what is asked for."""
    if asked is not None and asked not in (4, 8, OFF):
        raise ParameterError(f"plan_memory: kv_bits must be 16, 8 or 4, got {asked}.")
    if own is None:
        return (asked or OFF,) * 2
    if asked is not None and {asked} != set(own):
        raise ParameterError(
            f"plan_memory: kv_bits={asked} does not fit a model that keeps its keys in {own[0]} "
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


def _place(
    shape: Shape, context: int, gpu_bytes: int, host_bytes: int, batch: int, chunk: int | None
) -> MemoryPlan:
    """Return the plan for one context, with a refusal but no advice."""
    size = chunk or _chunk(shape, batch, gpu_bytes)
    size = min(size, context)
    layer = batch * context * shape.token_bytes
    plain = [index for index, window in enumerate(shape.windows) if window is None]
    sliding = [window for window in shape.windows if window is not None]
    kept = batch * shape.kv_heads * shape.head_dim * shape.dtype.itemsize * 2
    window_bytes = sum(min(context, w + size) * kept * 2 for w in sliding)
    activations = activation_bytes(shape, batch * size, batch)
    free = gpu_bytes - shape.weight_bytes - activations - window_bytes
    strip, near = 0, len(plain)
    if free < near * layer:
        most = min(_STRIP_SHARE * layer, _STRIP_BUDGET * gpu_bytes / 2)
        strip = max(1, int(most) // (batch * shape.token_bytes))
        strip = strip // _ROUND * _ROUND or min(strip, _ROUND)
        free -= 2 * strip * batch * shape.token_bytes
        near = max(0, free // layer)
    far = spread(plain, len(plain) - near)
    plan = MemoryPlan(
        context=context,
        batch=batch,
        chunk=size,
        key_bits=shape.key_bits,
        value_bits=shape.value_bits,
        gpu_bytes=gpu_bytes,
        host_bytes=host_bytes,
        weight_bytes=shape.weight_bytes,
        activation_bytes=activations,
        layer_bytes=layer,
        window_bytes=window_bytes,
        strip_tokens=strip,
        strip_bytes=2 * strip * batch * shape.token_bytes,
        host_layers=far,
        n_layers=len(shape.windows),
        _sliding=len(sliding),
    )
    if plain and near < 1:
        needed = gpu_bytes - free + layer
        return replace(
            plan,
            refusal=f"plan_memory: {_gb(gpu_bytes)} of device memory do not hold the model and "
            f"one layer's keys and values of {context} tokens; that takes {_gb(needed)}: weights "
            f"{_gb(shape.weight_bytes)}, activations {_gb(activations)}, buffers "
            f"{_gb(plan.strip_bytes)}, a layer {_gb(layer)}.",
        )
    if plan.host_needed > host_bytes:
        return replace(
            plan,
            refusal=f"plan_memory: {len(far)} of {len(shape.windows)} layers would keep "
            f"{_gb(plan.host_needed)} in the host's memory, and {_gb(host_bytes)} may be taken.",
        )
    return plan


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


def spread(layers: list[int], count: int) -> tuple[int, ...]:
    """Return ``count`` of the layers, evenly spread among them."""
    return tuple(layers[(2 * i + 1) * len(layers) // (2 * count)] for i in range(count))


def _chunk(shape: Shape, batch: int, gpu_bytes: int) -> int:
    """Return the largest chunk whose activations take an eighth of the device at most."""
    chunk = CHUNK
    while chunk > _ROUND and activation_bytes(shape, batch * chunk, batch) > gpu_bytes // 8:
        chunk //= 2
    return chunk


def _advice(shape: Shape, plan: MemoryPlan, chunk: int | None) -> str:
    """Return what would fit: fewer tokens, or keys and values of fewer bits."""

    def most(shape: Shape) -> int:
        low, high = 0, plan.context
        while high - low > 1:
            middle = (low + high) // 2
            tried = _place(shape, middle, plan.gpu_bytes, plan.host_bytes, plan.batch, chunk)
            low, high = (middle, high) if tried.refusal is None else (low, middle)
        return low

    options = [f"{most(shape)} tokens"] if most(shape) else []
    for bits in (8, 4):
        if (shape.key_bits, shape.value_bits) == (OFF, OFF):
            smaller = replace(shape, key_bits=bits, value_bits=bits)
            tried = _place(
                smaller, plan.context, plan.gpu_bytes, plan.host_bytes, plan.batch, chunk
            )
            if tried.refusal is None:
                options.append(f"all of them with keys and values of {bits} bits")
                break
    if not options:
        return "The model alone takes too much; give more memory."
    return f"What fits: {' or '.join(options)}."


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
