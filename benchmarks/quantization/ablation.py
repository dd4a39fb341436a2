"""Measure what each part of the method is worth, one after the other.

    python benchmarks/quantization/ablation.py MODEL --text calib.txt --test test.txt --out table.md

Every row is one configuration: quantised, saved, loaded and measured through its packed weights
and cache. Rows are written as they are done, and those that stand in the file are not run again.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

import torch

from tesseral.llm import load, perplexity, quantize
from tesseral.quantization import QuantizationConfig

PAPER: dict[str, Any] = {
    "rounding": "nearest",
    "start": "hadamard",
    "propagate": False,
    "objective": "mean",
    "rescale_norms": False,
}
ROWS: dict[str, dict[str, Any]] = {
    "rounding alone": {"transform": "none", "rounding": "nearest"},
    "random Hadamard matrices": {"transform": "hadamard", "rounding": "nearest"},
    "learned transforms": PAPER | {"learn": ["transforms"]},
    "+ scales": PAPER | {"learn": ["transforms", "scales"]},
    "+ clips: the paper": PAPER,
    "+ start from moments": PAPER | {"start": "moments"},
    "+ what arrives": PAPER | {"start": "moments", "propagate": True},
    "+ errors by token": PAPER | {"start": "moments", "propagate": True, "objective": "token"},
    "+ rescaled norms": {"rounding": "nearest"},
    "+ GPTQ: the default": {},
    "the default, no epochs": {"epochs": 0},
    "the default, free factors": {"parametrisation": "free"},
    "the default, original hidden states": {"propagate": False},
    "the default, errors by mean power": {"objective": "mean"},
    "W4A16": {"activation_bits": 16, "kv_bits": 16},
    "KV4 alone": {"weight_bits": 16, "activation_bits": 16},
    "W4A8KV4": {"activation_bits": 8},
    "W8A8KV8": {"weight_bits": 8, "activation_bits": 8, "kv_bits": 8},
    "W4A4KV4, groups of 64": {"group_size": 64},
    "W4A4KV4, down_proj at 8 bits": {
        "layers": {"down_proj": {"weight_bits": 8, "activation_bits": 8}}
    },
}
"""What is measured: changes to the default, by name, each row after what it builds on."""


def main() -> None:
    """Measure the rows that are asked for and not in the file yet."""
    options = _options()
    text, test = (path.read_text(encoding="utf-8") for path in (options.text, options.test))
    done = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    if not done:
        reference = _perplexity(options.model, test, options)
        done = "| configuration | perplexity | seconds |\n|---|---|---|\n"
        options.out.write_text(done + _row("full precision", reference, 0.0), encoding="utf-8")
    for name in options.only or ROWS:
        if f"| {name} |" in done:
            continue
        found, started = [], monotonic()
        for seed in range(options.seeds):
            settings = {
                "epochs": options.epochs,
                "samples": options.samples,
                "sequence_length": options.length,
                "seed": seed,
            }
            config = QuantizationConfig(**settings | ROWS[name])
            with tempfile.TemporaryDirectory() as directory:
                out = quantize(
                    options.model, config, text, Path(directory) / "out", device=options.device
                )
                found.append(_perplexity(out, test, options))
        seconds = (monotonic() - started) / options.seeds
        with options.out.open("a", encoding="utf-8") as file:
            file.write(_row(name, mean(found), seconds))


def _perplexity(model: Path, test: str, options: argparse.Namespace) -> float:
    loaded, tokenizer = load(model, dtype=torch.float32, device=options.device)
    return perplexity(loaded, tokenizer, test, options.length, max_sequences=options.sequences)


def _row(name: str, value: float, seconds: float) -> str:
    return f"| {name} | {value:.2f} | {seconds:.0f} |\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="calibration text")
    parser.add_argument("--test", type=Path, required=True, help="text to measure on")
    parser.add_argument("--out", type=Path, default=Path("ablation.md"))
    parser.add_argument("--only", nargs="*", choices=ROWS, help="rows to measure")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--sequences", type=int, help="test sequences; all by default")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
