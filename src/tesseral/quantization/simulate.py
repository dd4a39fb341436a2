"""A decoder block with simulated quantisation, in which transforms and clips are learned.

The parts stand in for a block's linear layers while it is calibrated; weights stay in full
precision and are transformed and rounded anew in every pass. :mod:`~.freeze` turns the
result into the parts that are stored.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tesseral.quantization.config import OFF
from tesseral.quantization.fusion import fuse_heads, fuse_input
from tesseral.quantization.linear import QuantizedActivation
from tesseral.quantization.numerics import (
    asymmetric_scale,
    in_groups,
    rounded,
    row_range,
    symmetric_codes,
    symmetric_range,
    symmetric_scale,
    weight_scale,
)
from tesseral.quantization.rounding import nearest_codes
from tesseral.quantization.shared_input import SharedInput
from tesseral.quantization.transforms.kronecker import (
    Kronecker,
    LearnableKronecker,
    apply_factors,
    evaluate,
)

_OPEN = 4.0  # logit at which a learned clip starts: sigmoid(4) = 0.982


class Clip(nn.Module):
    """Learned fractions of a range to keep, or fixed at the whole of it.

    Parameters
    ----------
    rows : int, optional
        Number of rows with a range of their own; one pair for all by default.
    learned : bool
        Whether the fractions are learned, as ``sigmoid`` of logits.
    dtype : torch.dtype
        Type of the fractions.
    """

    whole: Tensor

    def __init__(
        self, rows: int | None = None, *, learned: bool, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        shape = (2,) if rows is None else (rows, 2)
        logits = nn.Parameter(torch.full(shape, _OPEN, dtype=dtype))
        self.logits = logits if learned else None
        self.register_buffer("whole", torch.ones(shape, dtype=dtype), persistent=False)

    def forward(self) -> Tensor:
        """Return the fractions of minimum and maximum to keep."""
        return self.whole if self.logits is None else self.logits.sigmoid()


class SimulatedInput(SharedInput):
    """Transform, scale and quantise what several linear layers read.

    Parameters
    ----------
    transform : LearnableKronecker or Kronecker
        What is learned, or what stays fixed.
    log_scale : (in_features,) tensor, optional
        Start of the logarithm of the learned per-channel scale.
    clip : Clip
        Clip of the activation's range.
    bits : int
        Width of the codes; 16 for off.
    merged : bool
        Whether the layer that writes the input has taken the right factor over, so that only
        the left one is applied here.
    """

    def __init__(
        self,
        transform: LearnableKronecker | Kronecker,
        log_scale: Tensor | None,
        clip: Clip,
        *,
        bits: int,
        merged: bool = False,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.current: Kronecker
        self.log_scale = None if log_scale is None else nn.Parameter(log_scale)
        self.clip = clip
        self.bits = bits
        self.merged = merged
        refresh_together([self])

    @property
    def scale(self) -> Tensor | None:
        """The per-channel scale, positive."""
        return None if self.log_scale is None else self.log_scale.exp()

    @property
    def online(self) -> tuple[Tensor | None, Tensor | None]:
        """The two factors that are applied at run time."""
        left, right = self.current.factors
        return left, None if self.merged else right

    def compute(self, x: Tensor) -> Tensor | QuantizedActivation:
        """Return the transformed input with simulated rounding, as codes without gradients."""
        scaled = x if self.scale is None else x * self.scale
        rows = apply_factors(scaled, self.online)
        if self.bits == OFF or torch.is_grad_enabled():
            return fake_quantize_rows(rows, self.clip(), self.bits)
        scale = symmetric_scale(*row_range(rows, self.clip()), self.bits)
        return QuantizedActivation(symmetric_codes(rows, scale, self.bits), scale)


class SimulatedLinear(nn.Module):
    """A linear layer whose weight is transformed and rounded in every pass.

    Parameters
    ----------
    linear : torch.nn.Linear
        The original layer; its weight is read, never changed.
    source : SimulatedInput
        What it reads.
    merged : SimulatedInput, optional
        Site whose right factor multiplies each head of the output.
    rows : slice, optional
        The output channels that are these heads.
    clip : Clip
        Clip of each row of the weight.
    bits : int
        Width of the weight's codes; 16 for off.
    group_size : int, optional
        Neighbours in a row that share a scale; all by default.

    Attributes
    ----------
    product : torch.dtype, optional
        Type in which weight and input are multiplied; by default their own.
    """

    product: torch.dtype | None = None

    def __init__(
        self,
        linear: nn.Linear,
        source: SimulatedInput,
        merged: SimulatedInput | None,
        clip: Clip,
        *,
        bits: int,
        rows: slice | None = None,
        group_size: int | None = None,
    ) -> None:
        super().__init__()
        source.add_reader()
        # in tuples: what belongs to the block or to a sibling is not registered here
        self.original = (linear,)
        self.source = (source,)
        self.merged = (merged,)
        self.rows = slice(0, linear.out_features) if rows is None else rows
        self.clip = clip
        self.bits = bits
        self.group_size = group_size

    def fused(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias with the transforms folded in, before rounding."""
        (linear,), (source,), (merged,) = self.original, self.source, self.merged
        per_head = None if merged is None else merged.current.to(dtype).factors[1]
        scale = None if source.scale is None else source.scale.to(dtype)
        weight = linear.weight.detach().to(dtype)
        bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        if per_head is not None:
            weight = fuse_heads(weight, per_head, self.rows)
            bias = None if bias is None else fuse_heads(bias, per_head, self.rows)
        return fuse_input(weight, source.current.to(dtype), scale), bias

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to the shared, quantised input.

        Codes are multiplied, and then scaled, as the stored layer does, where nothing is learned:
        a sum of codes that is zero stays zero, and is not rounded to another side than there.
        """
        weight, bias = self.fused(x.dtype)
        prepared = self.source[0](x)
        groups = in_groups(weight, self.group_size)
        if isinstance(prepared, QuantizedActivation):
            if self.bits != OFF and groups.shape[1] == 1:
                return self._product_of_codes(prepared, weight, bias)
            prepared = prepared.dequantize()
        values = fake_quantize_rows(groups, self.clip()[:, None], self.bits).flatten(-2)
        kind = values.dtype if self.product is None else self.product
        bias = None if bias is None else bias.to(kind)
        product = nn.functional.linear(prepared.to(kind), values.to(kind), bias)
        return product.to(values.dtype)

    def _product_of_codes(
        self, prepared: QuantizedActivation, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        scale = weight_scale(weight, self.clip(), self.bits, None)
        codes = nearest_codes(weight, scale, self.bits)
        y = nn.functional.linear(prepared.codes, codes) * prepared.scale * scale.mT
        return y if bias is None else y + bias


class SimulatedCodec(nn.Module):
    """Simulated rounding of cached keys and values, with the learned transform P_h.

    Parameters
    ----------
    transform : LearnableKronecker or Kronecker
        Applied to each head of the keys; queries take its inverse transpose.
    key_clip, value_clip : Clip
        Clips of the ranges.
    key_bits, value_bits : int
        Widths of the codes; 16 for off.
    """

    def __init__(
        self,
        transform: LearnableKronecker | Kronecker,
        key_clip: Clip,
        value_clip: Clip,
        *,
        key_bits: int,
        value_bits: int,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.current: Kronecker
        self.key_clip = key_clip
        self.value_clip = value_clip
        self.key_bits = key_bits
        self.value_bits = value_bits
        refresh_together([self])

    def transform_query(self, query: Tensor) -> Tensor:
        """Return the queries that fit transformed keys."""
        return self.current.apply_inverse_transpose(query)

    def encode(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values with simulated rounding, per token and head."""
        key = self.current.apply(key)
        return (
            fake_quantize_heads(key, self.key_clip(), self.key_bits),
            fake_quantize_heads(value, self.value_clip(), self.value_bits),
        )


def fake_quantize_rows(x: Tensor, clip: Tensor, bits: int) -> Tensor:
    """Round rows to symmetric codes and back; gradients pass through."""
    if bits == OFF:
        return x
    scale = symmetric_scale(*row_range(x, clip), bits)
    return rounded(x, scale, None, symmetric_range(bits))


def fake_quantize_heads(x: Tensor, clip: Tensor, bits: int) -> Tensor:
    """Round rows to asymmetric codes and back; gradients pass through."""
    if bits == OFF:
        return x
    scale, offset = asymmetric_scale(*row_range(x, clip), bits)
    return rounded(x, scale, offset, (0, 2**bits - 1))


def refresh_together(parts: Sequence[SimulatedInput | SimulatedCodec]) -> None:
    """Compute the transforms of some parts at their present parameters."""
    learned = [p.transform for p in parts if isinstance(p.transform, LearnableKronecker)]
    computed = iter(evaluate(learned))
    for part in parts:
        transform = part.transform
        part.current = transform if isinstance(transform, Kronecker) else next(computed)
