"""Time the launch that turns rows into codes on a CUDA device, beside a copy of as many bytes.

    python benchmarks/quantization/rows.py

Rows are float16, as wide as a Llama of 8 B has them: what norms give, what attention gives, and
the middle of an MLP. "kept" has rows that are not transformed. Launches are recorded as graphs,
over three inputs each, and replayed in turns; each figure is a median of seven, in microseconds.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from tesseral.bench.graphs import copy_bytes_per_s, interleave_graphs
from tesseral.quantization.kernels.triton.rows import Norm, prepare, quantize_rows
from tesseral.quantization.transforms.hadamard import random_hadamard

SHAPES = {
    "norm 4096": (16384, (64, 64)),
    "plain 4096": (16384, (64, 64)),
    "gated 14336": (8192, (112, 128)),
}
"""Numbers of rows, and sizes of both factors."""


def main() -> None:
    """Print a line for each shape."""
    rate = copy_bytes_per_s()
    for name, (rows, sizes) in SHAPES.items():
        kind, width = name.split()[0], sizes[0] * sizes[1]
        wide = width * (2 if kind == "gated" else 1)
        inputs = [torch.randn(rows, wide, dtype=torch.float16, device="cuda") for _ in range(3)]
        sides = {
            "transformed": [_bound(kind, sizes, x, transformed=True) for x in inputs],
            "kept": [_bound(kind, sizes, x, transformed=False) for x in inputs],
        }
        times = {side: 1e6 * t.median_s for side, t in interleave_graphs(sides, 7).items()}
        copy = 1e6 * (2 * wide + width) * rows / rate
        said = ", ".join(f"{side} {time:.1f}" for side, time in times.items())
        sys.stdout.write(f"{name}: {said}, a copy {copy:.1f} us\n")


def _bound(
    kind: str, sizes: tuple[int, int], x: Tensor, *, transformed: bool
) -> Callable[[], object]:
    """Return a call that makes codes of rows, for products in float8."""
    width = sizes[0] * sizes[1]
    drawn = torch.Generator().manual_seed(0)
    factors = [random_hadamard(n, drawn).float().cuda() if transformed else None for n in sizes]
    ready = prepare(width, factors, torch.float16)
    clip = torch.ones(2, device="cuda")
    norm = Norm(weight=torch.ones(width, dtype=x.dtype, device="cuda"), epsilon=1e-5)
    return lambda: quantize_rows(
        x[:, -width:],
        ready,
        clip,
        4,
        form="floats",
        gate=x[:, :width] if kind == "gated" else None,
        norm=norm if kind == "norm" else None,
    )


if __name__ == "__main__":
    main()
