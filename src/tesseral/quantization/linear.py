"""Linear layers over packed weights and quantised inputs; they know no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tesseral.core.packed import PackedTensor
from tesseral.core.packing import packed_length, storage_bits
from tesseral.quantization.config import OFF
from tesseral.quantization.kernels.problem import LinearProblem, StoredWeight, rows_problem
from tesseral.quantization.kernels.registry import BACKENDS, ROWS, RowsBackend
from tesseral.quantization.kernels.weight_only import WEIGHT_ONLY, problem_of
from tesseral.quantization.shared_input import SharedInput
from tesseral.quantization.transforms.frozen import FrozenKronecker


@dataclass(frozen=True, slots=True)
class QuantizedActivation:
    """Rows of signed codes with one scale each: ``x = scale * codes``.

    Attributes
    ----------
    codes : int8 tensor of shape (..., in_features)
    scale : floating tensor of shape (..., 1)
    products : dict
        Outputs of layers that were computed together with a sibling's.
    """

    codes: Tensor
    scale: Tensor
    products: "Products" = field(default_factory=dict, compare=False)

    def dequantize(self) -> Tensor:
        """Return the values in the type of the scale."""
        return self.codes.to(self.scale.dtype) * self.scale


Products: TypeAlias = "dict[QuantizedLinear, Tensor]"
"""Outputs of layers that were computed together, until they are fetched."""


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
        self._layers: list[QuantizedLinear] = []
        self._memo: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memo": {}}  # kernels hold addresses

    @property
    def layers(self) -> list["QuantizedLinear"]:
        """The layers that read the same tensor, where these are all that were built."""
        return self._layers if len(self._layers) == self.readers else []

    def add_layer(self, layer: "QuantizedLinear") -> None:
        """Count a layer that will call this module, and remember it."""
        self._memo.clear()
        self.add_reader()
        self._layers.append(layer)

    def compute(self, x: Tensor) -> "Tensor | QuantizedActivation | Products":
        """Return what all readers give, if one call of a kernel does; else what they read."""
        if self.bits == OFF:
            products = self._weight_only(x)
            return self.quantize(x) if products is None else products
        stored = self._stored()
        joined = None if stored is None else self._joined(x, stored[0])
        transform: Any = self._modules["transform"]
        if joined is None or transform.is_watched:
            return self.quantize(x)
        clip = self._buffers["clip"]
        outputs = joined(x, transform.factors, clip, self.bits, stored, self._memo)
        return dict(zip(self._layers, outputs, strict=True))

    def _weight_only(self, x: Tensor) -> "Products | None":
        """Return what all readers give from rows that are not quantised, if a backend does that."""
        layers, transform = self.layers, self.transform
        if not layers or any(layer.bits == OFF for layer in layers) or transform.is_watched:
            return None
        stored = [layer.stored for layer in layers]
        problem = problem_of(x, stored[0], x.dtype)
        if any(problem_of(x, weight, x.dtype) != problem for weight in stored[1:]):
            return None
        multiply_rows = getattr(WEIGHT_ONLY.choose(problem), "multiply_rows", None)
        if multiply_rows is None:
            return None
        outputs = multiply_rows(x, transform.factors, stored, self._memo)
        return None if outputs is None else dict(zip(layers, outputs, strict=True))

    def _stored(self) -> list[StoredWeight] | None:
        """Return the weights of all layers, if each is packed and no other reads the input."""
        layers = self._layers
        if self.bits == OFF or not layers or len(layers) != self.readers:
            return None
        return None if any(layer.bits == OFF for layer in layers) else [x.stored for x in layers]

    def _joined(self, x: Tensor, first: StoredWeight) -> Callable[..., list[Tensor]] | None:
        """Return what gives all layers from the rows themselves, if a backend does."""
        # for one token, choosing takes as long as computing
        asked = x.dtype, x.is_cpu, first.scale.dtype, ROWS.asked, BACKENDS.asked
        known = self._memo.get("choice")
        if known is None or known[0] != asked:
            known = asked, _joined(self._rows_backend(x).name, self._layers)
            self._memo["choice"] = known
        chosen: Callable[..., list[Tensor]] | None = known[1]
        return chosen

    def quantize(self, x: Tensor) -> Tensor | QuantizedActivation:
        """Return codes with scales, or the dense transformed input when bits are off."""
        if self.bits == OFF:
            return self._dense(x)
        factors, memo = self.transform.factors, self._memo
        if self.transform.is_watched:  # someone wants to see the values
            x, factors, memo = self.transform(x), [None, None], {}
        codes, scale = self._rows_backend(x).quantize(x, factors, self.clip, self.bits, memo)
        return QuantizedActivation(codes, scale)

    def _dense(self, x: Tensor) -> Tensor:
        """Return the transformed input."""
        packed = [layer for layer in self._layers if layer.bits != OFF]
        factors = self.transform.factors
        if not packed or self.transform.is_watched or all(factor is None for factor in factors):
            dense: Tensor = self.transform(x)
            return dense
        backend = WEIGHT_ONLY.choose(problem_of(x, packed[0].stored, x.dtype))
        return backend.transform(x, factors)

    def _rows_backend(self, x: Tensor) -> RowsBackend:
        clip: Any = self._buffers["clip"]
        return ROWS.choose(rows_problem(x.dtype, clip.dtype, x.device.type, self.bits))


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
    group_size : int, optional
        Neighbours in a row that share a scale; all by default.
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
        group_size: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = in_features, out_features, bits
        # in a tuple: the module around owns the input, so it is not registered twice
        self._source, self._storage_bits = (source,), storage_bits(bits) if bits != OFF else OFF
        source.add_layer(self)
        self._memo: dict[str, Any] = {}
        self._problems: dict[str, LinearProblem] = {}
        self.register_buffer("weight", torch.empty(0, dtype=dtype))
        if bits == OFF:
            values = torch.zeros(out_features, in_features, dtype=dtype)
            self.register_buffer("weight_values", values)
        else:
            width = packed_length(in_features, storage_bits(bits))
            codes = torch.zeros(out_features, width, dtype=torch.uint8)
            self.register_buffer("weight_codes", codes)
            groups = 1 if group_size is None else in_features // group_size
            self.register_buffer("weight_scale", torch.ones(out_features, groups, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype) if bias else None)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memo": {}}  # kernels hold addresses

    @property
    def source(self) -> QuantizedInput:
        """What the layer reads."""
        return self._source[0]

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
        if isinstance(prepared, dict):
            if self not in prepared:  # called twice
                again: Any = self._source[0].compute(x)
                prepared.update(again)
            product: Tensor = prepared.pop(self)
            return product
        if isinstance(prepared, QuantizedActivation) and self.bits != OFF:
            if self not in prepared.products:
                self._multiply(prepared, x.dtype)
            return prepared.products.pop(self)
        if not isinstance(prepared, QuantizedActivation) and self.bits != OFF:
            return self._multiply_dense(prepared, x.dtype)
        dense = prepared.dequantize() if isinstance(prepared, QuantizedActivation) else prepared
        y = nn.functional.linear(dense, self.dense_weight().to(dense.dtype))
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)

    @property
    def stored(self) -> StoredWeight:
        """The packed weight and the bias."""
        # asking a module for a buffer takes long
        held: Any = self._buffers
        return StoredWeight(
            held["weight_codes"],
            held["weight_scale"],
            held["bias"],
            self._storage_bits,
            self.in_features,
        )

    def _multiply(self, activation: QuantizedActivation, dtype: torch.dtype) -> None:
        """Compute this layer and, with it, the siblings that will read the same input."""
        problem = self._problem()
        layers = self._source[0].layers
        if not layers or layers[0] is not self or any(x._problem() != problem for x in layers[1:]):
            layers = [self]
        outputs = BACKENDS.choose(problem).linears(
            activation.codes,
            activation.scale,
            [layer.stored for layer in layers],
            dtype,
            self._memo,
        )
        activation.products.update(zip(layers, outputs, strict=True))

    def _multiply_dense(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute this layer from rows that are not quantised."""
        stored = self.stored
        backend = WEIGHT_ONLY.choose(problem_of(x, stored, dtype))
        return backend.linear(x, stored, dtype, self._memo)

    def _problem(self) -> LinearProblem:
        codes = self._buffers["weight_codes"]
        assert codes is not None
        device = codes.device.type
        problem = self._problems.get(device)
        if problem is None:
            problem = self._problems[device] = LinearProblem(
                device=device,
                weight_bits=storage_bits(self.bits),
                activation_bits=self._source[0].bits,
                in_features=self.in_features,
                groups=self.weight_scale.shape[-1],
            )
        return problem

    def extra_repr(self) -> str:
        """Sizes and width, for printing a model."""
        return f"{self.in_features}, {self.out_features}, bits={self.bits}"


def _joined(rows: str, layers: Sequence[QuantizedLinear]) -> Callable[..., list[Tensor]] | None:
    """Return what gives all layers from the rows themselves, if the backend of rows does."""
    problem = layers[0]._problem()
    if any(layer._problem() != problem for layer in layers[1:]):
        return None
    linear = BACKENDS.choose(problem)
    if linear.name != rows or any(layer.stored.scale.dtype != torch.float32 for layer in layers):
        return None
    return getattr(linear, "linears_of_rows", None)
