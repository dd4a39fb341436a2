"""Compare a quantised model with the same one whose rounding is simulated in floating numbers.

    python benchmarks/quantization/packed.py QUANTISED --test test.txt

The model runs as it is: integer products, packed cache. Then its weights are dequantised, inputs
are rounded and multiplied as floating numbers, and keys and values are dequantised before they
are used. Sums in another order put a value now and then on the other side of an edge of rounding,
and layers after it carry that on, so single logits differ and means agree.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tesseral.core.packed import PackedTensor
from tesseral.llm import load, perplexity
from tesseral.quantization.kvcodec import KVCodec
from tesseral.quantization.linear import QuantizedActivation, QuantizedLinear


def main() -> None:
    """Print both perplexities."""
    options = _options()
    test = options.test.read_text(encoding="utf-8")
    model, reader = load(options.model, dtype=torch.float32, device=options.device)
    measure = partial(
        perplexity, model, reader, test, options.length, max_sequences=options.sequences
    )
    packed = measure()
    os.environ["TESSERAL_ROWS_BACKEND"] = "portable"
    _simulate(model)
    simulated = measure()
    sys.stdout.write(
        f"packed {packed:.4f}, simulated {simulated:.4f}, ratio {packed / simulated:.6f}\n"
    )


def _simulate(model: Any) -> None:
    model.is_quantized = False  # no packed cache
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.forward = partial(_product, module, module.dense_weight())  # type: ignore[method-assign]
        if isinstance(module, KVCodec):
            module.encode = partial(_encoded, module.encode)  # type: ignore[method-assign]


def _product(layer: QuantizedLinear, weight: Tensor, x: Tensor) -> Tensor:
    prepared = layer._source[0](x)
    if isinstance(prepared, QuantizedActivation):
        prepared = prepared.dequantize()
    return linear(prepared, weight, layer.bias).to(x.dtype)


def _encoded(encode: Any, key: Tensor, value: Tensor) -> list[Tensor]:
    pair = encode(key, value)
    return [x.dequantize().to(key.dtype) if isinstance(x, PackedTensor) else x for x in pair]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--test", type=Path, required=True, help="text to measure on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--sequences", type=int, help="test sequences; all by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
