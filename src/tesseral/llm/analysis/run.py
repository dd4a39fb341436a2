"""A language model looked at as tensors: its heads, its errors, and widths for its layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tesseral._errors import CheckpointError, ParameterError
from tesseral.llm.analysis.effects import Effects, explain_errors
from tesseral.llm.analysis.errors import PARTS, TRANSFORMS, ErrorTensor, error_tensor
from tesseral.llm.analysis.heads import HeadGroups, HeadStatistics, group_heads, head_statistics
from tesseral.llm.analysis.tokens import token_classes
from tesseral.llm.layouts import check_architecture
from tesseral.llm.loading import load, read_config
from tesseral.llm.text import clip_length, sample, tokenize
from tesseral.quantization.advice import Advice, Candidate, advise
from tesseral.quantization.config import OFF

WIDTHS = (2, 3, 4, 5, 6, 8)
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Analysis:
    """What was found in a model.

    Attributes
    ----------
    model : str
        Name of its directory.
    heads : HeadStatistics
    groups : HeadGroups
    errors : ErrorTensor
    effects : Effects
    advice : Advice
    n_sequences, sequence_length : int
        Text that was read.
    """

    model: str
    heads: HeadStatistics
    groups: HeadGroups
    errors: ErrorTensor
    effects: Effects
    advice: Advice
    n_sequences: int
    sequence_length: int


def analyze(
    model: str | Path,
    text: str,
    *,
    weight_bits: float = 4,
    activation_bits: float = 4,
    widths: Sequence[int] = WIDTHS,
    transform: str = "hadamard",
    n_groups: int | str = "bic",
    sequences: int = 4,
    sequence_length: int = 256,
    seed: int = 0,
    device: str | torch.device = "cpu",
    watch: Watch = lambda _, __, ___: None,
) -> Analysis:
    """Analyse a language model as two tensors, and advise widths for its layers.

    Attention statistics of layers x heads x token classes are clustered by the degree-corrected
    block model; errors of layers x projections x settings are regressed on depth, outliers, bits
    and transform. Widths follow from what each error costs the model's predictions.

    Parameters
    ----------
    model : path
        Directory in transformers' format, not quantised; all of it is in memory, with what a
        gradient of a thousand tokens, or of one sequence, needs.
    text : str
        At least one sequence long.
    weight_bits, activation_bits : float
        Averages that the advice keeps to, weighted by the numbers in weights.
    widths : sequence of int
        Widths to measure and to choose from. Codes are stored in 2, 4 or 8 bits: with other
        widths, what is stored is larger than the average says.
    transform : {"hadamard", "none"}
        After which transform losses are compared: the first stands for learned ones too.
    n_groups : int or "bic"
        Groups of heads.
    sequences, sequence_length : int
        How much of the text is read, at random places.
    seed : int
        Fixes everything random.
    device : str or torch.device
        Where the model is.
    watch : callable
        Called with a stage's name, how many steps of it are done, and how many there are.

    Raises
    ------
    CheckpointError, UnsupportedModelError
        If the model cannot be read, is quantised already, or is of an unknown kind.
    DataError
        If the text is shorter than one sequence.
    ParameterError
        If an argument is not allowed, or the averages are below the smallest width.
    """
    _check(widths, transform, n_groups, sequences)
    description = read_config(Path(model))
    check_architecture(description["model_type"])
    if description.get("quantization_config") is not None:
        raise CheckpointError(f"{model} is quantised already; give the original model.")
    network, tokenizer = load(model, device=device, dtype=torch.float32)
    length = clip_length(network, sequence_length)
    tokens = sample(tokenize(network, tokenizer, text), length, sequences, seed)
    watch("attention heads", 0, 1)
    classes = token_classes(tokenizer, tokens.flatten().tolist()).reshape(tokens.shape)
    heads = head_statistics(network, tokens, classes)
    groups = group_heads(heads, n_groups, seed)
    stage = "errors of rounding"
    errors = error_tensor(
        network, tokens, widths, seed=seed, report=lambda done, total: watch(stage, done, total)
    )
    watch("regression and advice", 0, 1)
    return Analysis(
        model=Path(model).resolve().name,
        heads=heads,
        groups=groups,
        errors=errors,
        effects=explain_errors(errors, seed=seed),
        advice=advice_of(errors, weight_bits, activation_bits, transform),
        n_sequences=len(tokens),
        sequence_length=length,
    )


def advice_of(
    errors: ErrorTensor, weight_bits: float, activation_bits: float, transform: str
) -> Advice:
    """Return the widths that measured losses call for.

    Raises
    ------
    ParameterError
        If the averages are below the smallest width.
    """
    places = {
        (s.part, s.bits): k for k, s in enumerate(errors.settings) if s.transform == transform
    }
    weights, inputs = [], []
    for layer in range(len(errors.loss)):
        present = [p for p in range(len(errors.projections)) if errors.sizes[layer, p]]
        together: dict[str, list[int]] = {}
        for p in present:
            weights.append(_candidate(errors, layer, [p], places, PARTS[0]))
            together.setdefault(errors.sites[p], []).append(p)
        inputs += [_candidate(errors, layer, ps, places, PARTS[1]) for ps in together.values()]
    return advise(
        weights,
        inputs,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        n_blocks=len(errors.loss),
        transform=transform,
    )


def _candidate(
    errors: ErrorTensor,
    layer: int,
    projections: list[int],
    places: dict[tuple[str, int], int],
    part: str,
) -> Candidate:
    return Candidate(
        layers=tuple(f"{layer}.{errors.projections[p]}" for p in projections),
        size=int(errors.sizes[layer, projections].sum()),
        losses={
            bits: float(errors.loss[layer, projections, k].sum())
            for (own, bits), k in places.items()
            if own == part
        },
    )


def _check(widths: Sequence[int], transform: str, n_groups: int | str, sequences: int) -> None:
    if not widths or len(set(widths)) < len(widths) or not all(2 <= b <= OFF / 2 for b in widths):
        raise ParameterError(
            f"analyze: widths must be different numbers from 2 to 8, got {list(widths)}."
        )
    if transform not in TRANSFORMS:
        raise ParameterError(
            f"analyze: transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}."
        )
    if n_groups != "bic" and (not isinstance(n_groups, int) or n_groups < 1):
        raise ParameterError(
            f"analyze: the number of groups must be at least 1, or 'bic'; got {n_groups!r}."
        )
    if sequences < 1:
        raise ParameterError(f"analyze: sequences must be at least 1, got {sequences}.")
