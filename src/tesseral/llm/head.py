"""The output embedding of a quantised model: a layer like those in its blocks, if asked for.

Its input takes a fixed transform, random Hadamard matrices; nothing is learned. A head that was
tied to the input embedding becomes a tensor of its own, and the embedding stays as it is.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral._errors import UnsupportedModelError
from tesseral.core.kronecker import balanced_factors
from tesseral.core.packing import pack, storage_bits
from tesseral.llm.layouts import final_norm_of
from tesseral.quantization.calibration.gains import SEQUENCES
from tesseral.quantization.config import QuantizationConfig
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear
from tesseral.quantization.numerics import weight_scale
from tesseral.quantization.rounding import compensated_codes, nearest_codes
from tesseral.quantization.simulate import fake_quantize_rows
from tesseral.quantization.transforms.hadamard import random_hadamard
from tesseral.quantization.transforms.kronecker import Kronecker

INPUT = "head_input"
"""Name under which a model holds what its head reads."""

_ROWS = 8192  # of the head that are rounded at a time


def head_of(model: PreTrainedModel) -> tuple[str, nn.Linear]:
    """Return the name of a model's output embedding, and the layer.

    Raises
    ------
    UnsupportedModelError
        If it is no linear layer.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(
            f"quantization: the output embedding of {type(model).__name__} is a "
            f"{type(head).__name__}, and head_bits needs a linear layer."
        )
    return next(name for name, module in model.named_modules() if module is head), head


def replace_head(model: PreTrainedModel, config: QuantizationConfig) -> None:
    """Put an empty stored layer in place of the output embedding, to be filled by a state."""
    name, head = head_of(model)
    with torch.device(head.weight.device):
        source = QuantizedInput(_sizes(head, config), bits=config.activation_bits)
        model.add_module(INPUT, source)
        stored = QuantizedLinear(
            head.in_features,
            head.out_features,
            source,
            bias=head.bias is not None,
            bits=config.head_bits,
            group_size=config.group_size,
        )
    model.set_submodule(name, stored)
    untie(model)


def untie(model: PreTrainedModel) -> None:
    """Tell transformers that input and output embedding are two tensors."""
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False


@torch.no_grad()
def head_state(
    model: PreTrainedModel, config: QuantizationConfig, states: Tensor
) -> dict[str, Tensor]:
    """Return the tensors of the stored head, by name.

    Parameters
    ----------
    model : transformers model
        Its head holds its weight.
    config : QuantizationConfig
        What to do.
    states : (samples, length, hidden) tensor
        What enters the norm before the head.
    """
    name, head = head_of(model)
    generator = torch.Generator().manual_seed(config.seed)
    factors = [None if n is None else random_hadamard(n, generator) for n in _sizes(head, config)]
    transform, clip = Kronecker.from_factors(factors), torch.ones(2)
    moments = None
    if config.rounding == "gptq":
        norm = final_norm_of(model)
        moments = _moments(norm, states[:SEQUENCES], transform, clip, config.activation_bits)
    state = {
        f"{INPUT}.transform.factor{i}": factor.float()
        for i, factor in enumerate(factors)
        if factor is not None
    }
    rounded = list(_rounded(head.weight, transform, config, moments))
    state |= {
        f"{INPUT}.clip": clip,
        f"{name}.weight": torch.empty(0),
        f"{name}.weight_codes": torch.cat([codes for codes, _ in rounded]),
        f"{name}.weight_scale": torch.cat([scale for _, scale in rounded]),
    }
    return state if head.bias is None else state | {f"{name}.bias": head.bias.float()}


def _sizes(head: nn.Linear, config: QuantizationConfig) -> tuple[int | None, int | None]:
    return (None, None) if config.transform == "none" else balanced_factors(head.in_features)


def _moments(
    norm: nn.Module, states: Tensor, transform: Kronecker, clip: Tensor, bits: int
) -> Tensor:
    """Return the second moments of what the head reads, transformed and rounded."""
    like, total = norm.get_parameter("weight"), torch.zeros(())
    for sequence in states:
        rows = transform.apply(norm(sequence.to(like)).double())
        rows = fake_quantize_rows(rows, clip.to(rows), bits)
        total = total + rows.mT @ rows
    return total


def _rounded(
    weight: Tensor, transform: Kronecker, config: QuantizationConfig, moments: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield packed codes and scales of the head, some rows at a time."""
    bits = config.head_bits
    for rows in weight.split(_ROWS):
        values = transform.apply_inverse_transpose(rows.double())
        whole = values.new_ones(len(values), 2)
        scale = weight_scale(values, whole, bits, config.group_size).float()
        if moments is None:
            codes = nearest_codes(values, scale.double(), bits)
        else:
            codes = compensated_codes(values, scale.double(), bits, moments)
        yield pack(codes.to(torch.int8), storage_bits(bits)), scale
