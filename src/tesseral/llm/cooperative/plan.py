"""What a long context takes of a device's memory and of the host's, known before it is taken."""

from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from tesseral._errors import ParameterError
from tesseral.llm.cooperative.shape import Shape, activation_bytes, describe
from tesseral.quantization.config import OFF

CHUNK = 8192
"""Tokens of a prompt that go through the model at once."""

_STRIP_SHARE = 0.375  # of a layer's keys and values that a buffer holds, at most
_STRIP_BUDGET = 0.05  # of the device's memory that both buffers take, at most
_ROUND = 64


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
    ranks: int = 1,
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
    ranks : int
        Among how many a model in a directory will be divided by :func:`load_parallel`; the plan
        and all memory are one rank's. A loaded model is counted as it is.

    Returns
    -------
    MemoryPlan
        Also where it does not fit: :attr:`MemoryPlan.refusal` says why, and what would.

    Raises
    ------
    ParameterError
        If a number is out of range, or ranks do not divide the heads.
    UnsupportedModelError
        If the model has layers without ordinary keys and values.
    """
    host_bytes = psutil.virtual_memory().available if host_bytes is None else host_bytes
    numbers = {"context": context, "gpu_bytes": gpu_bytes, "batch": batch, "chunk": chunk or CHUNK}
    numbers["ranks"] = ranks
    for name, number in numbers.items():
        if number < 1:
            raise ParameterError(f"plan_memory: {name} must be at least 1, got {number}.")
    shape = describe(model, kv_bits, ranks=ranks)
    found = _place(shape, context, gpu_bytes, host_bytes, batch, chunk)
    if found.refusal is None:
        return found
    return replace(found, refusal=f"{found.refusal} {_advice(shape, found, chunk)}")


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
    least = layer if plain else 0
    if free < least:
        held = f"one layer's keys and values of {context} tokens" if plain else "its windows"
        return replace(
            plan,
            refusal=f"plan_memory: {_gb(gpu_bytes)} of device memory do not hold the model and "
            f"{held}; that takes {_gb(gpu_bytes - free + least)}: weights "
            f"{_gb(shape.weight_bytes)}, activations {_gb(activations)}, windows "
            f"{_gb(window_bytes)}, buffers {_gb(plan.strip_bytes)}, a layer {_gb(least)}.",
        )
    if plan.host_needed > host_bytes:
        return replace(
            plan,
            refusal=f"plan_memory: {len(far)} of {len(shape.windows)} layers would keep "
            f"{_gb(plan.host_needed)} in the host's memory, and {_gb(host_bytes)} may be taken.",
        )
    return plan


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
