"""What is done to a model, as one frozen record that travels with its checkpoint."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from tesseral._errors import ParameterError

VERSION = 2
TRANSFORMS = ("none", "hadamard", "flatquant")
ROUNDINGS = ("nearest", "gptq")
OBJECTIVES = ("token", "mean")
PARAMETRISATIONS = ("cayley", "free")
STARTS = ("moments", "hadamard")
PRECISIONS = ("float32", "bfloat16")
LEARNABLE = ("transforms", "scales", "clips")
OFF = 16
LARGEST_SEED = 2**32 - 1
FAST = {"epochs": 1, "samples": 64, "sequence_length": 1024}
"""What to change for a result in minutes on a CPU: the start is near where learning ends."""
_LAYER = re.compile(r"\d+|(\d+\.)?[A-Za-z_]\w*")
_OF_A_LAYER = ("weight_bits", "activation_bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """How a language model is quantised.

    Attributes
    ----------
    weight_bits, activation_bits, kv_bits : int
        Width of weights, of the inputs of linear layers, and of cached keys and values:
        2 to 8, or 16 to leave them as they are. Widths other than 2, 4 and 8 are stored in
        the next of these.
    key_bits, value_bits : int, optional
        Override ``kv_bits`` for keys or values.
    transform : {"none", "hadamard", "flatquant"}
        What is applied before rounding: nothing, fixed random Hadamard matrices, or the
        learned affine transforms, scales and clips of FlatQuant.
    rounding : {"nearest", "gptq"}
        How weights are rounded: each to the nearest code, or so that later columns make up
        for the errors of earlier ones on the calibration text.
    group_size : int, optional
        Neighbours in a row of a weight that share a scale; all of a row by default. It must
        divide the width of every layer.
    layers : mapping of str to mapping
        Widths that differ from the above: by the last part of a layer's name
        (``{"down_proj": {"weight_bits": 8, "activation_bits": 8}}``), by the number of a
        block (``{"0": {"kv_bits": 8}}``, all of it), or by both (``"0.down_proj"``), which
        has the last word. Layers that share an input read the widest that one of them asks for.
    epochs, batch_size : int
        Passes over the calibration sequences for each block, and sequences in a step.
    samples, sequence_length : int
        Calibration sequences and their length in tokens; the length is clipped to the
        model's maximum.
    learn : tuple of {"transforms", "scales", "clips"}
        What is learned. Transforms that are not stay at random Hadamard matrices, channels
        have no scale, and ranges are not clipped.
    start : {"moments", "hadamard"}
        Where learned transforms and scales start: at those that second moments of inputs and
        gradients call for, or at random Hadamard matrices and the scale of the paper.
    propagate : bool
        Whether a block learns on what its quantised predecessors produce, so that it can make
        up for their errors, or on the original hidden states as in the paper.
    objective : {"token", "mean"}
        What calibration minimises: the squared error of a block's output relative to the
        power of each token, or relative to the mean power of all, as in the paper. The first
        keeps a few tokens of huge norm from outweighing all others, in GPTQ too.
    least_gain : float
        A block has learned enough once an epoch lowers its loss by less than this part of it.
    rescale_norms : bool
        Whether, after learning, norms are rescaled so that their outputs match the original
        ones in least squares; see :mod:`tesseral.quantization.calibration.gains`.
    parametrisation : {"cayley", "free"}
        How the factors of a transform are learned: as ``U diag(s) V^T`` with orthogonal U and
        V, or as matrices whose inverses are computed in float64.
    learning_rate, clip_learning_rate : float
        Initial step sizes of transforms and scales, and of clips; both decay by a cosine.
    precision : {"float32", "bfloat16"}
        Type in which layers multiply while they learn; transforms and rounding stay in
        float32. A block whose loss is not finite in bfloat16 is learned again in float32.
    seed : int
        Fixes calibration text, random starts and the order of batches.
    version : int
        Version of this record; only the current one is read.

    Raises
    ------
    ParameterError
        If a value is not one of those allowed.

    References
    ----------
    Sun, Liu et al. (2025), "FlatQuant: Flatness Matters for LLM Quantization", section 4.
    """

    weight_bits: int = 4
    activation_bits: int = 4
    kv_bits: int = 4
    key_bits: int | None = None
    value_bits: int | None = None
    transform: str = "flatquant"
    rounding: str = "gptq"
    group_size: int | None = None
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    epochs: int = 15
    batch_size: int = 4
    samples: int = 128
    sequence_length: int = 2048
    learn: tuple[str, ...] = LEARNABLE
    start: str = "moments"
    propagate: bool = True
    objective: str = "token"
    least_gain: float = 0.0
    rescale_norms: bool = True
    parametrisation: str = "cayley"
    learning_rate: float = 5e-3
    clip_learning_rate: float = 5e-2
    precision: str = "float32"
    seed: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "kv_bits"):
            _check_bits(name, getattr(self, name))
        for name in ("key_bits", "value_bits"):
            if getattr(self, name) is not None:
                _check_bits(name, getattr(self, name))
        _check_choice("transform", self.transform, TRANSFORMS)
        _check_choice("rounding", self.rounding, ROUNDINGS)
        _check_choice("objective", self.objective, OBJECTIVES)
        _check_choice("parametrisation", self.parametrisation, PARAMETRISATIONS)
        _check_choice("start", self.start, STARTS)
        _check_choice("precision", self.precision, PRECISIONS)
        _check_learn(self.learn)
        object.__setattr__(self, "learn", tuple(self.learn))
        object.__setattr__(self, "layers", _checked_layers(self.layers))
        if self.group_size is not None:
            _check_integer("group_size", self.group_size, 1)
        _check_choice("version", self.version, (VERSION,))
        for name, least in (
            ("epochs", 0),
            ("batch_size", 1),
            ("samples", 1),
            ("sequence_length", 2),
            ("seed", 0),
        ):
            _check_integer(name, getattr(self, name), least)
        if self.seed > LARGEST_SEED:
            raise ParameterError(
                f"QuantizationConfig: seed must be at most {LARGEST_SEED}, got {self.seed}."
            )
        for name in ("propagate", "rescale_norms"):
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(
                    f"QuantizationConfig: {name} must be true or false, "
                    f"got {getattr(self, name)!r}."
                )
        for name in ("learning_rate", "clip_learning_rate"):
            _check_rate(name, getattr(self, name))
        _check_rate("least_gain", self.least_gain, zero=True)

    @property
    def learned(self) -> tuple[str, ...]:
        """What has learned values; nothing but with learned transforms."""
        return self.learn if self.transform == "flatquant" else ()

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return bool(self.learned) and self.epochs > 0

    @property
    def rescales(self) -> bool:
        """Whether norms are rescaled."""
        return self.rescale_norms and bool(self.learned)

    @property
    def cache_bits(self) -> tuple[int, int]:
        """Widths of cached keys and values."""
        return (
            self.kv_bits if self.key_bits is None else self.key_bits,
            self.kv_bits if self.value_bits is None else self.value_bits,
        )

    def in_block(self, index: int) -> Self:
        """Return the configuration of one block: what ``layers`` says of it is resolved.

        What is left in ``layers`` of the result are names of layers.
        """
        layers = {name: dict(widths) for name, widths in self.layers.items()}
        whole = layers.pop(str(index), {})
        own = {k.partition(".")[2]: v for k, v in layers.items() if k.startswith(f"{index}.")}
        names = {k for k in layers if not k[0].isdigit()} | own.keys()
        merged = {name: layers.get(name, {}) | whole | own.get(name, {}) for name in names}
        for widths in merged.values():
            widths.pop("kv_bits", None)
        changes: dict[str, Any] = dict(whole)
        if "kv_bits" in whole:
            changes |= {"key_bits": None, "value_bits": None}
        return replace(self, layers=merged, **changes)

    def layer_bits(self, name: str) -> tuple[int, int]:
        """Return the widths of a layer's weight and of its input, in a configuration of a block."""
        widths = self.layers.get(name.rpartition(".")[2], {})
        return (
            widths.get("weight_bits", self.weight_bits),
            widths.get("activation_bits", self.activation_bits),
        )

    def check_layers(self, names: Iterable[str]) -> None:
        """Refuse widths of layers that a block does not have.

        Raises
        ------
        ParameterError
            If ``layers`` names one that is the last part of none of ``names``.
        """
        known = {name.rpartition(".")[2] for name in names}
        unknown = sorted(set(self.layers) - known)
        if unknown:
            raise ParameterError(
                f"QuantizationConfig: layers names {', '.join(unknown)}, but a block of this model "
                f"has {', '.join(sorted(known))}."
            )

    def site_bits(self, readers: Iterable[str]) -> int:
        """Return the width of an input that some layers read, in a configuration of a block."""
        return max(self.layer_bits(name)[1] for name in readers)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self) | {"learn": list(self.learn)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from plain values, refusing keys it does not know.

        Raises
        ------
        ParameterError
            If a key is unknown or a value is not allowed.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ParameterError(
                f"QuantizationConfig: unknown key {', '.join(map(repr, unknown))}; "
                f"known are {', '.join(sorted(known))}."
            )
        return cls(**values)

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Undo :meth:`to_json`.

        Raises
        ------
        ParameterError
            If the text is no JSON object or does not describe a configuration.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ParameterError(f"QuantizationConfig: not valid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ParameterError(
                f"QuantizationConfig: expected a JSON object, got {type(values).__name__}."
            )
        return cls.from_dict(values)


def _check_bits(name: str, bits: object) -> None:
    if not isinstance(bits, int) or not (2 <= bits <= 8 or bits == OFF):
        raise ParameterError(
            f"QuantizationConfig: {name} must be 2 to 8, or {OFF} for off, got {bits!r}."
        )


def _check_learn(learn: object) -> None:
    if not isinstance(learn, list | tuple) or not set(learn) <= set(LEARNABLE):
        raise ParameterError(
            f"QuantizationConfig: learn must list some of {', '.join(map(repr, LEARNABLE))}, "
            f"got {learn!r}."
        )


def _checked_layers(layers: object) -> dict[str, dict[str, int]]:
    """Return a copy of the widths that differ, once it is sure what they mean."""
    if not isinstance(layers, Mapping):
        raise ParameterError(
            f"QuantizationConfig: layers must map names to widths, got {layers!r}."
        )
    for name, widths in layers.items():
        if not isinstance(name, str) or not _LAYER.fullmatch(name):
            raise ParameterError(
                "QuantizationConfig: a key of layers is the last part of a layer's name, the "
                f"number of a block, or both as in '0.down_proj', got {name!r}."
            )
        known = ("weight_bits", "activation_bits", "kv_bits") if name.isdigit() else _OF_A_LAYER
        if not isinstance(widths, Mapping) or not set(widths) <= set(known):
            raise ParameterError(
                f"QuantizationConfig: layers[{name!r}] may set {', '.join(known)}, got {widths!r}."
            )
        for key, bits in widths.items():
            _check_bits(f"layers[{name!r}][{key!r}]", bits)
    return {name: dict(widths) for name, widths in layers.items()}


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ParameterError(
            f"QuantizationConfig: {name} must be one of "
            f"{', '.join(map(repr, choices))}, got {value!r}."
        )


def _check_rate(name: str, value: object, *, zero: bool = False) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (0 < value < float("inf") or (zero and value == 0))
    ):
        raise ParameterError(
            f"QuantizationConfig: {name} must be {'zero or ' if zero else ''}positive and "
            f"finite, got {value!r}."
        )


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ParameterError(
            f"QuantizationConfig: {name} must be an integer of at least {least}, got {value!r}."
        )
