"""The kernel families that ``tesseral doctor`` asks, with calls typical for each."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tesseral._errors import TesseralError
from tesseral.runtime.machine import accelerators
from tesseral.runtime.registry import Verdict

Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A registry of backends and some problems to ask it about.

    Attributes
    ----------
    name : str
    registry, problem : str
        ``"module:attribute"`` of the registry and of its problem record.
    samples : mapping of str to mapping
        A problem in words, and the arguments that state it.
    device_samples : mapping of str to mapping
        Others, asked of each kind of CUDA device; their ``device`` is added.
    """

    name: str
    registry: str
    problem: str
    samples: Mapping[str, Mapping[str, Any]]
    device_samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_HEADS = {"q_heads": 32, "kv_heads": 8, "head_dim": 128, "value_dim": 128, "scale": 128**-0.5}
_PREFILL = _HEADS | {"batch": 1, "q_len": 4096, "kv_len": 4096, "causal": True}
_DECODE = _HEADS | {"batch": 1, "q_len": 1, "kv_len": 4096, "causal": True}
_LINEAR = {"device": "cpu", "weight_bits": 4, "activation_bits": 4, "in_features": 4096}

FAMILIES = (
    Family(
        name="attention",
        registry="tesseral.attention.registry:BACKENDS",
        problem="tesseral.attention.problem:AttentionProblem",
        samples={
            "causal prefill of 4096, float32": _PREFILL | {"dtype": "float32", "device": "cpu"},
            "decoding after 4096, 4-bit keys and values": _DECODE
            | {"dtype": "float32", "device": "cpu"}
            | {"key_format": "packed4", "value_format": "packed4"},
        },
        device_samples={
            "causal prefill of 4096, float16": _PREFILL | {"dtype": "float16"},
            "causal prefill of 4096, bfloat16": _PREFILL | {"dtype": "bfloat16"},
            "causal prefill of 4096, float32": _PREFILL | {"dtype": "float32"},
            "prefill of 4096 with a mask, float16": _PREFILL
            | {"dtype": "float16"}
            | {"causal": False, "mask": "boolean"},
            "decoding after 4096, float16": _DECODE | {"dtype": "float16"},
            "decoding after 4096, 8-bit keys and values": _DECODE
            | {"dtype": "float16"}
            | {"key_format": "packed8", "value_format": "packed8"},
            "decoding after 4096, 4-bit keys and values": _DECODE
            | {"dtype": "float16"}
            | {"key_format": "packed4", "value_format": "packed4"},
        },
    ),
    Family(
        name="linear",
        registry="tesseral.quantization.kernels.registry:BACKENDS",
        problem="tesseral.quantization.kernels.problem:LinearProblem",
        samples={
            "4-bit weights and activations": _LINEAR,
            "8-bit weights and activations": _LINEAR | {"weight_bits": 8, "activation_bits": 8},
            "4-bit weights and activations on CUDA": _LINEAR | {"device": "cuda"},
        },
    ),
    Family(
        name="rows",
        registry="tesseral.quantization.kernels.registry:ROWS",
        problem="tesseral.quantization.kernels.problem:RowsProblem",
        samples={
            "bfloat16 rows to 4-bit codes": {"device": "cpu", "dtype": "bfloat16"}
            | {"working_dtype": "float32", "bits": 4},
            "bfloat16 rows to 4-bit codes on CUDA": {"device": "cuda", "dtype": "bfloat16"}
            | {"working_dtype": "float32", "bits": 4},
        },
    ),
    Family(
        name="weight-only",
        registry="tesseral.quantization.kernels.weight_only:WEIGHT_ONLY",
        problem="tesseral.quantization.kernels.weight_only:WeightOnlyProblem",
        samples={
            "4-bit weights under bfloat16 rows": {"device": "cpu", "dtype": "bfloat16"}
            | {"working_dtype": "float32", "weight_bits": 4, "in_features": 4096},
            "4-bit weights under bfloat16 rows on CUDA": {"device": "cuda", "dtype": "bfloat16"}
            | {"working_dtype": "float32", "weight_bits": 4, "in_features": 4096},
        },
    ),
    Family(
        name="heads",
        registry="tesseral.quantization.kernels.heads:HEADS",
        problem="tesseral.quantization.kernels.heads:HeadsProblem",
        samples={
            "bfloat16 heads of 128 to 4-bit codes": {"device": "cpu", "dtype": "bfloat16"}
            | {"working_dtype": "float32", "head_dim": 128, "bits": 4},
            "bfloat16 heads of 128 to 4-bit codes on CUDA": {"device": "cuda", "dtype": "bfloat16"}
            | {"working_dtype": "float32", "head_dim": 128, "bits": 4},
        },
    ),
)


def ask(family: Family) -> dict[str, Any]:
    """Return what a family answers to each of its sample problems.

    Returns
    -------
    dict
        :func:`verdicts` of every problem; or ``{"needs": module}`` alone, if the family's
        room needs a module that is not installed.
    """
    try:
        registry, problem = _attribute(family.registry), _attribute(family.problem)
        return {words: _ask(registry, problem(**given)) for words, given in _samples(family)}
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tesseral"):
            raise
        return {"needs": error.name}


def verdicts(choose: Callable[[], str], explain: Callable[[], Mapping[str, Verdict]]) -> Answer:
    """Return who would run, and what each candidate says.

    Returns
    -------
    dict
        ``chosen`` (a name, or ``None``), ``refusal`` (why nobody was chosen, or ``None``) and
        ``verdicts`` (each name with its ``ok`` and ``reason``).
    """
    chosen = refusal = None
    try:
        chosen = choose()
    except TesseralError as error:
        refusal = str(error)
    given = {name: {"ok": v.ok, "reason": v.reason} for name, v in explain().items()}
    return {"chosen": chosen, "refusal": refusal, "verdicts": given}


def _samples(family: Family) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the problems of a family, those for a device once for each kind of device."""
    yield from family.samples.items()
    if not family.device_samples:
        return
    kinds: dict[str, int] = {}
    for number, device in enumerate(accelerators()):
        kinds.setdefault(device.name, number)
    for name, number in kinds.items():
        for words, given in family.device_samples.items():
            yield f"{words}, on {name}", {**given, "device": f"cuda:{number}"}


def _ask(registry: Any, problem: Any) -> Answer:
    return verdicts(lambda: registry.choose(problem).name, lambda: registry.explain(problem))


def _attribute(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
