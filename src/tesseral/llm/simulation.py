"""A quantised model computed in floating numbers, to hold what is packed against.

Codes of inputs, keys and values are those that the model's own kernels give: they come from
floating numbers, and sums in another order put a value now and then on the other side of an edge
between two codes, after which two models that are equally right say different things. What is
replaced is what storing changes: packed weights, integer products, and the packed cache.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral.core.packed import PackedTensor
from tesseral.quantization.config import OFF
from tesseral.quantization.kvcodec import KVCodec
from tesseral.quantization.linear import QuantizedActivation, QuantizedLinear


@contextmanager
def simulated(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Let a quantised model compute in floating numbers, until the end of the ``with`` block.

    A layer of packed weights multiplies codes as float64 numbers, so that sums are exact as those
    of integers are, and then takes scales and bias step by step as the packed layer does. Keys and
    values are dequantised before attention sees them, and there is no packed cache. So up to
    attention's order of summation the logits are those of the packed model to the last bit, except
    where a row of a weight has several scales, whose order is a kernel's own.

    Parameters
    ----------
    model : transformers model
        As :func:`~tesseral.llm.load` returns it. Sequences are run whole, without a cache.

    Yields
    ------
    transformers model
        The same object.
    """
    replaced: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        setattr(module, name, function)
        replaced.append((module, name))

    packed_cache = model.is_quantized
    try:
        model.is_quantized = False
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                replace(module, "forward", partial(_product, module))
            elif isinstance(module, KVCodec):
                replace(module, "encode", partial(_encoded, module.encode))
        yield model
    finally:
        model.is_quantized = packed_cache
        for module, name in replaced:
            delattr(module, name)


def _product(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """Return what a layer gives, by the same steps on unpacked numbers."""
    prepared = layer.source.quantize(x)
    if layer.bits == OFF or not isinstance(prepared, QuantizedActivation):
        dense = prepared.dequantize() if isinstance(prepared, QuantizedActivation) else prepared
        y = nn.functional.linear(dense, layer.dense_weight().to(dense.dtype))
    elif layer.weight_scale.shape[-1] > 1:
        y = nn.functional.linear(prepared.dequantize(), layer.dense_weight())
    else:
        sums = nn.functional.linear(prepared.codes.double(), layer.packed.codes().double())
        y = sums.to(prepared.scale.dtype) * prepared.scale * layer.weight_scale.mT
    if layer.bias is not None:
        y = y + layer.bias
    return y.to(x.dtype)


def _encoded(encode: Callable[..., Any], key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return keys and values as their codes represent them."""
    pair = encode(key, value)
    # scales are float16, but in that type the values themselves would be rounded again
    kind = torch.promote_types(key.dtype, torch.float32)
    return tuple(x.dequantize(kind) if isinstance(x, PackedTensor) else x for x in pair)
