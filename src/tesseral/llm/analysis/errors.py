"""What rounding each linear layer alone costs: a tensor of layers x projections x settings.

Two measures. The *error* of a projection is the squared error of its output relative to the
output's square. Its *loss* is what that error adds to the divergence of the model's predictions,
in nats a token, to second order: with labels drawn from the model's own predictions, the
gradients g of the log-likelihood have the Fisher information as their second moment, which is
the Hessian of the divergence, so an error d of the output of one token costs E (g . d)^2 / 2.
Errors of different tokens are taken as independent.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral.llm.layouts import blocks_of, open_block, opened_blocks
from tesseral.quantization.fusion import fuse_input
from tesseral.quantization.placement import BlockLayout, InputSite, site_of
from tesseral.quantization.simulate import fake_quantize_rows
from tesseral.quantization.transforms.hadamard import random_hadamard
from tesseral.quantization.transforms.kronecker import Kronecker

Floats = NDArray[np.float64]

TRANSFORMS = ("none", "hadamard")
PARTS = ("weight", "activation")
Report = Callable[[int, int], None]
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is rounded, to how many bits, and after which transform."""

    part: str
    bits: int
    transform: str

    def __str__(self) -> str:
        return f"{self.part} {self.bits} {self.transform}"


def settings_of(widths: Sequence[int]) -> tuple[Setting, ...]:
    """Return every part at every width after every transform."""
    return tuple(
        Setting(part=part, bits=bits, transform=transform)
        for transform in TRANSFORMS
        for part in PARTS
        for bits in widths
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorTensor:
    """What rounding costs, and what might explain it.

    Attributes
    ----------
    error, loss : float64 arrays of shape (layers, projections, settings)
        See the module; NaN where a layer has no such projection.
    settings : tuple of Setting
        Names of the last axis.
    projections : tuple of str
        Last parts of the layers' names.
    sites : tuple of str
        For each projection, the input that it reads.
    peaks, weight_peaks : float64 arrays of shape (layers, projections)
        Outlier measures: the largest magnitude in a row over the row's root mean square, as a
        mean over tokens of the input, and over rows of the weight.
    sizes : int array of shape (layers, projections)
        Numbers in the weights.
    n_tokens : int
        Tokens that were measured.
    """

    error: Floats
    loss: Floats
    settings: tuple[Setting, ...]
    projections: tuple[str, ...]
    sites: tuple[str, ...]
    peaks: Floats
    weight_peaks: Floats
    sizes: NDArray[np.int64]
    n_tokens: int


def error_tensor(
    model: PreTrainedModel,
    sequences: Tensor,
    widths: Sequence[int],
    *,
    seed: int = 0,
    report: Report = lambda _, __: None,
) -> ErrorTensor:
    """Measure every linear layer of every block, one by one, in one pass and its gradient.

    Parameters
    ----------
    model : transformers model
        Of a known architecture, not quantised, in float32; its parameters get no gradients.
    sequences : integer tensor of shape (n, length)
        Tokens.
    widths : sequence of int
        Bits to round to, 2 to 8.
    seed : int
        Fixes the Hadamard matrices and the labels that are drawn.
    report : callable
        Called with the number of sequences done and of all.

    Raises
    ------
    UnsupportedModelError
        If the architecture is not known.
    """
    settings = settings_of(widths)
    model.requires_grad_(False)
    labels = torch.Generator(device=model.device).manual_seed(seed)
    with ExitStack() as stack:
        layouts = stack.enter_context(opened_blocks(model, model.config.model_type))
        meters: dict[tuple[int, str], _Meter] = {}
        for index, (block, layout) in enumerate(zip(blocks_of(model), layouts, strict=True)):
            for name, meter in _meters(block, layout, model, settings, seed).items():
                stack.callback(meter.attach())
                meters[index, name] = meter
        done = 0
        for batch in sequences.split(max(1, _TOKENS_AT_ONCE // sequences.shape[1])):
            _gradients(model, batch.to(model.device), labels)
            done += len(batch)
            report(done, len(sequences))
    return _collected(meters, len(layouts), settings, sequences.numel())


def _gradients(model: PreTrainedModel, batch: Tensor, generator: torch.Generator) -> None:
    """Run some sequences forward, and back from labels drawn from what is predicted."""
    embedded = model.get_input_embeddings()(batch)
    embedded = embedded.detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded, use_cache=False).logits.flatten(0, 1).float()
    drawn = torch.multinomial(logits.detach().softmax(dim=-1), 1, generator=generator)
    nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()


def _meters(
    block: nn.Module,
    layout: BlockLayout,
    model: PreTrainedModel,
    settings: Sequence[Setting],
    seed: int,
) -> dict[str, "_Meter"]:
    shape = open_block(block, model.config.model_type)[1]
    generator = torch.Generator().manual_seed(seed)
    turned: dict[str, Kronecker] = {}
    meters = {}
    for name, roles in layout.linears.items():
        site = site_of(roles[0])
        if site.name not in turned:
            factors = [random_hadamard(n, generator) for n in site.factor_sizes(shape)]
            turned[site.name] = Kronecker.from_factors([f.float() for f in factors])
        linear: Any = block.get_submodule(name)
        meters[name] = _Meter(linear, site, turned[site.name], settings)
    return meters


class _Meter:
    """Sums up what rounding costs one linear layer."""

    def __init__(
        self, linear: nn.Linear, site: InputSite, hadamard: Kronecker, settings: Sequence[Setting]
    ) -> None:
        self.linear, self.site, self.settings = linear, site, settings
        nothing = Kronecker((None, None), (None, None))
        self.transforms = {"none": nothing, "hadamard": _on(hadamard, linear.weight.device)}
        self.sums = np.zeros((2, len(settings)))
        self.power = self.peak = 0.0
        self.rows = 0

    def attach(self) -> Callable[[], None]:
        """Watch the layer, and return how to stop."""

        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, y = inputs[0].detach(), output.detach()
            if output.requires_grad:
                output.register_hook(lambda gradient: self._add(x, y, gradient))

        return self.linear.register_forward_hook(forward).remove

    @torch.no_grad()
    def _add(self, x: Tensor, output: Tensor, gradient: Tensor) -> None:
        x, g, y = (v.flatten(0, -2).float() for v in (x, gradient, output))
        if not len(x):
            return
        y = y if self.linear.bias is None else y - self.linear.bias
        self.power += float(y.double().square().sum())
        self.peak += float(_peaks(x).double().sum())
        self.rows += len(x)
        inputs = {name: t.apply(x) for name, t in self.transforms.items()}
        weights = {
            name: fuse_input(self.linear.weight.float(), t, None)
            for name, t in self.transforms.items()
        }
        for number, setting in enumerate(self.settings):
            ours, weight = inputs[setting.transform], weights[setting.transform]
            if setting.part == "weight":
                weight = _rounded(weight, setting.bits)
            else:
                ours = _rounded(ours, setting.bits)
            wrong = nn.functional.linear(ours, weight) - y
            self.sums[0, number] += float(wrong.double().square().sum())
            self.sums[1, number] += float((wrong * g).sum(dim=-1).double().square().sum()) / 2


def _on(transform: Kronecker, device: torch.device) -> Kronecker:
    moved = [
        tuple(None if f is None else f.to(device) for f in factors)
        for factors in (transform.factors, transform.inverse_transposes)
    ]
    return Kronecker(*moved)


def _rounded(rows: Tensor, bits: int) -> Tensor:
    return fake_quantize_rows(rows, rows.new_ones(2), bits)


def _peaks(rows: Tensor) -> Tensor:
    size = rows.square().mean(dim=-1).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
    return rows.abs().amax(dim=-1) / size


def _collected(
    meters: dict[tuple[int, str], _Meter],
    n_layers: int,
    settings: tuple[Setting, ...],
    n_tokens: int,
) -> ErrorTensor:
    """Put the sums of all layers into arrays; experts of one name count as one."""
    groups: dict[tuple[int, str], list[_Meter]] = defaultdict(list)
    for (layer, name), meter in meters.items():
        groups[layer, name.rpartition(".")[2]].append(meter)
    projections = tuple(dict.fromkeys(name for _, name in groups))
    sites = {name: group[0].site.name for (_, name), group in groups.items()}
    error, loss = np.full((2, n_layers, len(projections), len(settings)), np.nan)
    peaks, weight_peaks = np.full((2, n_layers, len(projections)), np.nan)
    sizes = np.zeros((n_layers, len(projections)), dtype=np.int64)
    for (layer, name), group in groups.items():
        place = layer, projections.index(name)
        sums = np.sum([meter.sums for meter in group], axis=0)
        error[place] = sums[0] / max(sum(m.power for m in group), np.finfo(float).tiny)
        loss[place] = sums[1] / n_tokens
        peaks[place] = sum(m.peak for m in group) / max(sum(m.rows for m in group), 1)
        weight_peaks[place] = np.mean([float(_peaks(m.linear.weight).mean()) for m in group])
        sizes[place] = sum(m.linear.weight.numel() for m in group)
    return ErrorTensor(
        error=error,
        loss=loss,
        settings=settings,
        projections=projections,
        sites=tuple(sites[name] for name in projections),
        peaks=peaks,
        weight_peaks=weight_peaks,
        sizes=sizes,
        n_tokens=n_tokens,
    )
