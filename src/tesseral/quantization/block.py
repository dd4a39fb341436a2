"""One decoder block: putting simulated or stored parts in place of its linear layers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tesseral._errors import UnsupportedModelError
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.kvcodec import KVCodec
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear
from tesseral.quantization.numerics import working_dtype
from tesseral.quantization.placement import (
    CODEC,
    INPUT_SITES,
    BlockLayout,
    BlockShape,
    InputSite,
    site_of,
)
from tesseral.quantization.shared_input import SharedInput
from tesseral.quantization.simulate import (
    Clip,
    SimulatedCodec,
    SimulatedInput,
    SimulatedLinear,
    refresh_together,
)
from tesseral.quantization.transforms.hadamard import random_hadamard
from tesseral.quantization.transforms.kronecker import Kronecker, LearnableKronecker


class SimulatedBlock(nn.Module):
    """The parts that simulate quantisation in one block.

    Parameters
    ----------
    block : module
        The original block; it is changed only inside :meth:`installed`.
    layout, shape : BlockLayout, BlockShape
        Its module names and sizes.
    config : QuantizationConfig
        What to simulate.
    maxima : dict of str to (width,) tensor
        Largest magnitude of every channel of each input site, over the calibration text.
    generator : torch.Generator
        Source of the random starts.
    """

    def __init__(
        self,
        block: nn.Module,
        layout: BlockLayout,
        shape: BlockShape,
        config: QuantizationConfig,
        maxima: dict[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.block, self.layout, self.shape, self.config = (block,), layout, shape, config
        linears = original_linears(block, layout)
        config.check_layers(linears)
        weight = next(iter(linears.values())).weight
        self.dtype, self.device = working_dtype(weight.dtype), weight.device
        self.inputs = {
            s.name: self._input(s, linears, maxima[s.name], generator) for s in INPUT_SITES
        }
        self.linears = {name: self._linear(name, linear) for name, linear in linears.items()}
        share_inputs(layout, self.inputs)
        self._parts = nn.ModuleList([*self.inputs.values(), *self.linears.values()])
        self.codec = SimulatedCodec(
            self._transform((shape.head_dim,), generator),
            self._clip(),
            self._clip(),
            key_bits=config.cache_bits[0],
            value_bits=config.cache_bits[1],
        )

    def _transform(
        self, sizes: tuple[int, ...], generator: torch.Generator
    ) -> LearnableKronecker | Kronecker:
        if self.config.transform == "none":
            return Kronecker((None,) * len(sizes), (None,) * len(sizes))
        starts = [random_hadamard(n, generator).to(self.device, self.dtype) for n in sizes]
        if "transforms" not in self.config.learned:
            return Kronecker.from_factors(starts)
        return LearnableKronecker(starts, self.config.parametrisation)

    def _input(
        self,
        site: InputSite,
        linears: dict[str, nn.Linear],
        maxima: Tensor,
        generator: torch.Generator,
    ) -> SimulatedInput:
        log_scale = None
        if "scales" in self.config.learned and self.layout.takes_scale(site):
            weights = [linears[name].weight for name in self.layout.readers(site)]
            log_scale = start_of_scale(maxima, weights)
        return SimulatedInput(
            self._transform(site.factor_sizes(self.shape), generator),
            log_scale,
            self._clip(),
            bits=self.config.site_bits(self.layout.readers(site)),
            merged=site.merged_into is not None,
        )

    def _linear(self, name: str, linear: nn.Linear) -> SimulatedLinear:
        roles = self.layout.linears[name]
        merged = next((s for s in INPUT_SITES if s.merged_into in roles), None)
        return SimulatedLinear(
            linear,
            self.inputs[site_of(roles[0]).name],
            None if merged is None else self.inputs[merged.name],
            self._clip(linear.weight.shape[0]),
            bits=self.config.layer_bits(name)[0],
            group_size=self.config.group_size,
            rows=self.layout.rows(name, "value", self.shape),
        )

    def _clip(self, rows: int | None = None) -> Clip:
        return Clip(rows, learned="clips" in self.config.learned, dtype=self.dtype)

    def multiply_in(self, product: torch.dtype | None) -> None:
        """Have all layers multiply in a type, or in their own."""
        for linear in self.linears.values():
            linear.product = product

    def refresh(self) -> None:
        """Compute every transform at its present parameters."""
        refresh_together([*self.inputs.values(), self.codec])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameters for an optimiser, clips apart from transforms."""
        named = dict(self.named_parameters())
        clips = [p for name, p in named.items() if name.endswith("logits")]
        others = [p for name, p in named.items() if not name.endswith("logits")]
        return [
            {"params": others, "lr": self.config.learning_rate},
            {"params": clips, "lr": self.config.clip_learning_rate},
        ]

    @contextmanager
    def installed(self) -> Iterator[nn.Module]:
        """Give the block with the simulated parts in place, and put it back afterwards."""
        (block,) = self.block
        originals = original_linears(block, self.layout)
        attention = block.get_submodule(self.layout.attention)
        try:
            for name, linear in self.linears.items():
                block.set_submodule(name, linear)
            attention.add_module(CODEC, self.codec)
            yield block
        finally:
            for name, original in originals.items():
                block.set_submodule(name, original)
            delattr(attention, CODEC)


def original_linears(block: nn.Module, layout: BlockLayout) -> dict[str, nn.Linear]:
    """Return the block's linear layers by name.

    Raises
    ------
    UnsupportedModelError
        If the block has no such module, or one that is not linear.
    """
    linears = {}
    for name, roles in layout.linears.items():
        try:
            module = block.get_submodule(name)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear):
            raise UnsupportedModelError(
                f"quantization: {type(block).__name__} should hold a linear layer {name!r} as "
                f"{', '.join(roles)}, found "
                f"{'nothing' if module is None else type(module).__name__}; looked for "
                f"{', '.join(layout.linears)}."
            )
        linears[name] = module
    return linears


def start_of_scale(maxima: Tensor, weights: list[Tensor]) -> Tensor:
    """Return the logarithm of the per-channel scale that calibration starts from.

    ``w_max^0.7 / x_max^0.3`` with the largest magnitudes of each channel in the weights
    and in the input (FlatQuant, appendix B.1).
    """
    largest = torch.stack([w.detach().abs().amax(dim=0) for w in weights]).amax(dim=0)
    return 0.7 * largest.clamp_min(1e-5).log() - 0.3 * maxima.clamp_min(1e-5).log()


def replace_with_quantized(
    block: nn.Module,
    layout: BlockLayout,
    shape: BlockShape,
    config: QuantizationConfig,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put empty stored parts in place of a block's linear layers, to be filled by a state.

    Parameters
    ----------
    block, layout, shape, config
        As for :class:`SimulatedBlock`.
    dtype : torch.dtype
        Type of transforms, scales, biases and of dense weights.
    """
    linears = original_linears(block, layout)
    transformed = config.transform != "none"
    key_bits, value_bits = config.cache_bits
    codec = KVCodec(
        shape.head_dim if transformed else None,
        key_bits=key_bits,
        value_bits=value_bits,
        dtype=dtype,
    )
    block.get_submodule(layout.attention).add_module(CODEC, codec)
    sources = {}
    for site in INPUT_SITES:
        left, right = site.factor_sizes(shape) if transformed else (None, None)
        sizes = (left, None if site.merged_into else right)
        bits = config.site_bits(layout.readers(site))
        source = QuantizedInput(sizes, bits=bits, dtype=dtype)
        block.get_submodule(layout.owner(site)).add_module(site.name, source)
        for name in layout.readers(site):
            old = linears[name]
            new = QuantizedLinear(
                old.in_features,
                old.out_features,
                source,
                bias=old.bias is not None,
                bits=config.layer_bits(name)[0],
                group_size=config.group_size,
                dtype=dtype,
            )
            block.set_submodule(name, new)
        sources[site.name] = source
    share_inputs(layout, sources)
    if layout.norm_offset:
        _keep_norms(block, layout, dtype)


def _keep_norms(block: nn.Module, layout: BlockLayout, dtype: torch.dtype) -> None:
    """Hold norms in ``dtype``: less an offset, a small weight would be lost in a shorter type."""
    for name in layout.norms.values():
        norm = block.get_submodule(name)
        weight = norm.get_parameter("weight")
        norm.weight = nn.Parameter(weight.to(dtype), requires_grad=weight.requires_grad)


def share_inputs(layout: BlockLayout, sources: Mapping[str, SharedInput]) -> None:
    """Tell each site's input how many layers read the same tensor: experts read one each."""
    for site in INPUT_SITES:
        n_tensors = len(layout.first_readers(site))
        sources[site.name].readers = len(layout.readers(site)) // n_tensors
