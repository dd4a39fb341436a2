"""Widths for every layer that lose the least at a given average, out of measured losses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np

from tesseral._errors import ParameterError
from tesseral.quantization.config import QuantizationConfig

VERSION = 1
_SLACK = 1e-9  # of the average: it was computed, and may have been rounded
_ABSENT = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something that gets one width: a weight, or an input that several layers read.

    Attributes
    ----------
    layers : tuple of str
        Layers whose width it is, as in ``QuantizationConfig.layers``: ``"0.down_proj"``.
    size : int
        How much it counts in the average: numbers in the weights of these layers, which is
        also how often an input is multiplied.
    losses : mapping of int to float
        By width, what rounding it costs.
    """

    layers: tuple[str, ...]
    size: int
    losses: Mapping[int, float]


def choose_widths(candidates: Sequence[Candidate], average: float) -> list[int]:
    """Return a width for each candidate: the least sum of losses with an average not above.

    It is the exact optimum of a knapsack problem with one choice out of each group.

    Parameters
    ----------
    candidates : sequence of Candidate
        Not empty.
    average : float
        Bound on the mean width, weighted by ``size``.

    Raises
    ------
    ParameterError
        If even the smallest widths are above the average.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # slow to import

    choices = [(k, bits) for k, c in enumerate(candidates) for bits in sorted(c.losses)]
    sizes = np.array([c.size for c in candidates], dtype=np.float64)
    share = sizes / sizes.sum()
    least = float(share @ [min(c.losses) for c in candidates])
    if average < least - _SLACK:
        raise ParameterError(
            f"advice: the widths to choose from average at least {least:g} bits, so "
            f"{average:g} cannot be met; allow smaller ones or a larger average."
        )
    loss = np.array([candidates[k].losses[bits] for k, bits in choices])
    one_each = np.array([[k == own for k, _ in choices] for own in range(len(candidates))], float)
    cost = np.array([share[k] * bits for k, bits in choices])
    found = milp(
        loss / max(float(loss.max()), np.finfo(float).tiny),
        integrality=np.ones(len(choices), dtype=np.int64),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(cost[None], -np.inf, average + _SLACK),
        ],
        options={"mip_rel_gap": 1e-6, "time_limit": 30},
    )
    if found.x is None:  # the time was not enough for any answer
        raise ParameterError(f"advice: no widths were found for {average:g} bits: {found.message}.")
    taken = {k: bits for (k, bits), x in zip(choices, found.x, strict=True) if x > 0.5}
    return [taken[k] for k in range(len(candidates))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Widths of the layers of one model, with what was expected of them.

    Attributes
    ----------
    layers : mapping of str to mapping
        As ``QuantizationConfig.layers``, every layer of every block.
    weight_bits, activation_bits : float
        Averages over the numbers in weights.
    loss, uniform_loss : float
        What these widths, and the same averages in every layer, were expected to add to the
        mean negative log-likelihood of a token, in nats; the latter is interpolated where the
        average is no width.
    n_blocks : int
        Decoder blocks of the model.
    transform : str
        What was applied before rounding when losses were measured.
    version : int
    """

    layers: Mapping[str, Mapping[str, int]]
    weight_bits: float
    activation_bits: float
    loss: float
    uniform_loss: float
    n_blocks: int
    transform: str
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ParameterError(
                f"advice: version {self.version!r} is not known, only {VERSION} is."
            )
        QuantizationConfig(layers=self.layers)  # refuses what it cannot hold

    def applied_to(self, config: QuantizationConfig) -> QuantizationConfig:
        """Return a configuration with these widths; its own ``layers`` have the last word."""
        return replace(config, layers={**self.layers, **config.layers})

    def check_model(self, n_blocks: int) -> None:
        """Refuse a model with another number of blocks.

        Raises
        ------
        ParameterError
            If it has.
        """
        if n_blocks != self.n_blocks:
            raise ParameterError(
                f"advice: it is for a model of {self.n_blocks} blocks, this one has {n_blocks}."
            )

    def to_json(self) -> str:
        """Return the advice as JSON text."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Undo :meth:`to_json`.

        Raises
        ------
        ParameterError
            If the text is no JSON object or holds no advice.
        """
        try:
            values: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ParameterError(f"advice: not valid JSON: {error}.") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            names = sorted(values) if isinstance(values, dict) else [type(values).__name__]
            raise ParameterError(
                f"advice: expected an object with {', '.join(sorted(known))}; got "
                f"{', '.join(names) or _ABSENT}."
            )
        return cls(**values)


def advise(
    weights: Sequence[Candidate],
    inputs: Sequence[Candidate],
    *,
    weight_bits: float,
    activation_bits: float,
    n_blocks: int,
    transform: str,
) -> Advice:
    """Choose widths of weights and of inputs, each at an average of its own.

    Parameters
    ----------
    weights, inputs : sequences of Candidate
        Of the same layers; layers that read one input are in one candidate of ``inputs``.
    weight_bits, activation_bits : float
        Averages that must not be exceeded.
    n_blocks, transform
        As in :class:`Advice`.

    Raises
    ------
    ParameterError
        As :func:`choose_widths`.
    """
    layers: dict[str, dict[str, int]] = {}
    averages, loss, uniform = [], 0.0, 0.0
    for name, candidates, bound in (
        ("weight_bits", weights, weight_bits),
        ("activation_bits", inputs, activation_bits),
    ):
        widths = choose_widths(candidates, bound)
        for candidate, bits in zip(candidates, widths, strict=True):
            loss += candidate.losses[bits]
            uniform += loss_at(candidate, bound)
            for layer in candidate.layers:
                layers.setdefault(layer, {})[name] = bits
        sizes = [candidate.size for candidate in candidates]
        averages.append(float(np.average(widths, weights=sizes)))
    return Advice(
        layers=layers,
        weight_bits=averages[0],
        activation_bits=averages[1],
        loss=loss,
        uniform_loss=uniform,
        n_blocks=n_blocks,
        transform=transform,
    )


def loss_at(candidate: Candidate, bits: float) -> float:
    """Return a candidate's loss at a width, between measured ones on a logarithmic scale."""
    widths = sorted(candidate.losses)
    smallest = np.finfo(np.float64).tiny
    logs = [np.log(max(candidate.losses[b], smallest)) for b in widths]
    return float(np.exp(np.interp(bits, widths, logs)))
