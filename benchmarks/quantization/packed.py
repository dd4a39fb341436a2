"""Compare a quantised model with the same one computed in floating numbers.

    python benchmarks/quantization/packed.py QUANTISED --test test.txt

Three sides read the same sequences. "packed" is the model as it runs: integer products, packed
cache. "simulated" is `tesseral.llm.simulated`: weights, keys and values unpacked to floating
numbers. "simulated, torch's sums" also transforms and rounds inputs, keys and queries by torch's
operations in place of the kernels'. Each ratio of perplexities comes with its standard error over
sequences, and with the share of sequences whose logits are the packed model's within 1e-4 of the
largest. With TESSERAL_ATTENTION_BACKEND=reference all sides sum in float64 in attention.

Where sums run in another order, a value now and then falls on the other side of an edge between
two codes, and layers after it carry that on: single logits differ, and means agree.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tesseral.llm import load, simulated
from tesseral.llm.evaluate import new_cache
from tesseral.llm.text import clip_length, consecutive, tokenize

CLOSE = 1e-4
"""Difference of logits that counts as none, relative to the largest of a sequence."""


def main() -> None:
    """Print a line for each side."""
    options = _options()
    model, reader = load(options.model, dtype=torch.float32, device=options.device)
    tokens = tokenize(model, reader, options.test.read_text(encoding="utf-8"))
    sequences = consecutive(tokens, clip_length(model, options.length))[: options.sequences]
    losses = {name: torch.zeros(len(sequences), dtype=torch.float64) for name in SIDES}
    equal = dict.fromkeys(SIDES, 0)
    for index, sequence in enumerate(sequences.to(options.device)):
        packed = _logits(model, sequence)
        for name, side in SIDES.items():
            with side(model):
                logits = _logits(model, sequence)
            losses[name][index] = cross_entropy(logits[:-1], sequence[1:]).double()
            equal[name] += bool((logits - packed).abs().max() <= CLOSE * packed.abs().max())
    for name in SIDES:
        _say(name, losses[name], losses["packed"], equal[name] / len(sequences))


@contextmanager
def _torch_sums(model: Any) -> Iterator[None]:
    names = ("TESSERAL_ROWS_BACKEND", "TESSERAL_HEADS_BACKEND")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, "portable")
    try:
        with simulated(model):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


SIDES: dict[str, Callable[[Any], AbstractContextManager[Any]]] = {
    "packed": nullcontext,
    "simulated": simulated,
    "simulated, torch's sums": _torch_sums,
}
"""What is compared, by name; the first is what the others are compared with."""


@torch.inference_mode()
def _logits(model: Any, sequence: Tensor) -> Tensor:
    cache = new_cache(model)
    found: Tensor = model(
        sequence[None], past_key_values=cache, use_cache=cache is not None
    ).logits.float()
    return found[0]


def _say(name: str, losses: Tensor, packed: Tensor, equal: float) -> None:
    differences = packed - losses
    error = float(differences.std()) / len(losses) ** 0.5 if len(losses) > 1 else float("nan")
    sys.stdout.write(
        f"{name}: perplexity {exp(losses.mean()):.4f}, packed / this "
        f"{exp(differences.mean()):.6f} +- {error:.6f}, {equal:.1%} of {len(losses)} sequences "
        "with the same logits\n"
    )


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
