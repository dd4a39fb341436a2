"""Compare a packed model with the simulated one that it was frozen from.

    python benchmarks/quantization/packed.py MODEL --text calib.txt --test test.txt

Transforms stay where moments start them, and weights are rounded to the nearest as in simulation.
What remains are sums in another order: they put a value now and then on the other side of an
edge of rounding, and layers after it carry that on. In float64 there is next to none of it.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from tesseral.llm import load, perplexity
from tesseral.llm.capture import block_arguments, hidden_states
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.llm.quantizer import mark_quantized
from tesseral.llm.text import consecutive, sample, tokenize
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.block import SimulatedBlock, replace_with_quantized
from tesseral.quantization.calibration.loop import observe
from tesseral.quantization.calibration.objective import token_weights
from tesseral.quantization.calibration.start import start_from_moments
from tesseral.quantization.calibration.statistics import measure
from tesseral.quantization.calibration.task import BlockTask
from tesseral.quantization.freeze import frozen_state

CONFIG = QuantizationConfig(rounding="nearest", epochs=0, rescale_norms=False, propagate=False)


def main() -> None:
    """Print how far logits and perplexities are apart."""
    options = _options()
    text, test = (path.read_text(encoding="utf-8") for path in (options.text, options.test))
    dtype = getattr(torch, options.dtype)
    model, reader = load(options.model, dtype=dtype, device=options.device)
    model.requires_grad_(False)
    parts = _simulated(model, sample(tokenize(model, reader, text), 512, 8, 0))
    ids = consecutive(tokenize(model, reader, test), options.length)[:1].to(options.device)

    def measured() -> tuple[torch.Tensor, float]:
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits.double()
        return logits, perplexity(
            model, reader, test, options.length, max_sequences=options.sequences
        )

    with ExitStack() as stack:
        for simulated in parts:
            stack.enter_context(simulated.installed())
        expected, before = measured()
    _freeze(model, parts)
    logits, after = measured()
    error = float((logits - expected).norm() / expected.norm())
    print(f"{options.dtype} on {options.device}: logits of the first sequence differ by {error:.2g}")
    print(f"perplexity simulated {before:.4f}, packed {after:.4f}, ratio {after / before:.6f}")


def _simulated(model: Any, sequences: torch.Tensor) -> list[SimulatedBlock]:
    """Return the parts that simulate every block, at their starts."""
    arguments = block_arguments(model, sequences[0].to(model.device))
    states = torch.cat(list(hidden_states(model, sequences, 4)))
    parts = []
    for index, block in enumerate(blocks_of(model)):
        layout, shape = open_block(block, model.config.model_type)
        task = BlockTask(
            block=block,
            layout=layout,
            shape=shape,
            arguments=arguments[index],
            inputs=states,
            received=states,
            index=index,
            n_blocks=len(blocks_of(model)),
        )
        outputs, maxima = observe(task, 4)
        generator = torch.Generator().manual_seed(index)
        simulated = SimulatedBlock(block, layout, shape, CONFIG, maxima, generator)
        weights = token_weights(outputs, CONFIG.objective)
        start_from_moments(simulated.to(model.device), measure(task, weights, generator))
        parts.append(simulated)
        states = outputs
    return parts


def _freeze(model: Any, parts: list[SimulatedBlock]) -> None:
    for simulated in parts:
        (block,) = simulated.block
        state = frozen_state(simulated, simulated.dtype)
        with torch.device(model.device):
            replace_with_quantized(
                block, simulated.layout, simulated.shape, CONFIG, simulated.dtype
            )
        block.load_state_dict(state)
    mark_quantized(model, CONFIG)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="calibration text")
    parser.add_argument("--test", type=Path, required=True, help="text to measure on")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--sequences", type=int, help="test sequences; all by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
