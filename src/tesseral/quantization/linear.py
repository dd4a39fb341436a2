"""Linear layers over packed weights and quantised inputs; they know no model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tesseral.core.packed import PackedTensor
from tesseral.core.packing import packed_length, storage_bits
from tesseral.quantization.config import OFF
from tesseral.quantization.kernels.problem import LinearProblem
from tesseral.quantization.kernels.registry import BACKENDS
from tesseral.quantization.numerics import row_range, symmetric_codes, symmetric_scale
from tesseral.quantization.shared_input import SharedInput
from tesseral.quantization.transforms.frozen import FrozenKronecker


@dataclass(frozen=True, slots=True)
class QuantizedActivation:
    """Rows of signed codes with one scale each: ``x = scale * codes``.

    Attributes
    ----------
    codes : int8 tensor of shape (..., in_features)
    scale : floating tensor of shape (..., 1)
    """

    codes: Tensor
    scale: Tensor

    def dequantize(self) -> Tensor:
        """Return the values in the type of the scale."""
        return self.codes.to(self.scale.dtype) * self.scale


class QuantizedInput(SharedInput):
    """Transforms and quantises, token by token, what several linear layers read.

    Parameters
    ----------
    sizes : pair of int or None
        Sizes of the Kronecker factors applied; ``None`` for an identity.
    bits : int
        Width of the codes; 16 leaves the transformed input dense.
    dtype : torch.dtype
        Type in which transform and scale are computed.
    """

    clip: Tensor

    def __init__(
        self, sizes: tuple[int | None, int | None], *, bits: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.bits = bits
        self.transform = FrozenKronecker(sizes, dtype)
        self.register_buffer("clip", torch.ones(2, dtype=dtype))

    def compute(self, x: Tensor) -> Tensor | QuantizedActivation:
        """Return codes with scales, or the dense transformed input when bits are off."""
        x = self.transform(x)
        if self.bits == OFF:
            return x
        x = x.to(self.clip.dtype)
        scale = symmetric_scale(*row_range(x, self.clip), self.bits)
        return QuantizedActivation(symmetric_codes(x, scale, self.bits).to(torch.int8), scale)


class QuantizedLinear(nn.Module):
    """A linear layer over a shared, quantised input.

    The weight is held packed in ``weight_codes``, with one scale a row, or, when its bits are
    off, dense in ``weight_values``. ``weight`` is an empty tensor: transformers without this
    package, which knows no other name, stops at its size instead of filling in random numbers.

    Parameters
    ----------
    in_features, out_features : int
        Sizes.
    source : QuantizedInput
        What the layer reads; owned by the module around it and shared with its siblings.
    bias : bool
        Whether there is a bias.
    bits : int
        Width of the weight's codes; 16 for a dense weight.
    dtype : torch.dtype
        Type of scales and bias, and of a dense weight.
    """

    weight: Tensor
    weight_codes: Tensor
    weight_scale: Tensor
    weight_values: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        source: QuantizedInput,
        *,
        bias: bool,
        bits: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        # in a tuple: the module around owns the input, so it is not registered twice
        self._source = (source,)
        source.add_reader()
        self.register_buffer("weight", torch.empty(0, dtype=dtype))
        if bits == OFF:
            values = torch.zeros(out_features, in_features, dtype=dtype)
            self.register_buffer("weight_values", values)
        else:
            width = packed_length(in_features, storage_bits(bits))
            codes = torch.zeros(out_features, width, dtype=torch.uint8)
            self.register_buffer("weight_codes", codes)
            self.register_buffer("weight_scale", torch.ones(out_features, 1, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype) if bias else None)

    @property
    def packed(self) -> PackedTensor:
        """The packed weight of shape (out_features, in_features)."""
        return PackedTensor(
            data=self.weight_codes,
            scale=self.weight_scale,
            bits=storage_bits(self.bits),
            length=self.in_features,
        )

    def dense_weight(self) -> Tensor:
        """Return the values of the weight."""
        if self.bits == OFF:
            return self.weight_values
        values: Tensor = self.packed.dequantize()
        return values

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x' W'^T + bias`` in the type of ``x``, with x' and W' as quantised."""
        prepared = self._source[0](x)
        if isinstance(prepared, QuantizedActivation) and self.bits != OFF:
            y = self._integer_product(prepared)
        else:
            dense = prepared.dequantize() if isinstance(prepared, QuantizedActivation) else prepared
            y = nn.functional.linear(dense, self.dense_weight().to(dense.dtype))
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)

    def _integer_product(self, activation: QuantizedActivation) -> Tensor:
        problem = LinearProblem(
            device=self.weight_codes.device.type,
            weight_bits=storage_bits(self.bits),
            activation_bits=self._source[0].bits,
            in_features=self.in_features,
        )
        sums = BACKENDS.choose(problem).linear(activation.codes, self.packed)
        return sums.to(activation.scale.dtype) * activation.scale * self.weight_scale.mT

    def extra_repr(self) -> str:
        """Sizes and width, for printing a model."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"
