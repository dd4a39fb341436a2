"""Measure tiles on this device and print them as a data file.

``python -m tesseral.attention.backends.triton.tune PREFIX ...`` measures the cases of
:func:`~tesseral.attention.backends.triton.tuning.case_of` whose names start with a prefix; all,
without one. Each is run with several tiles; the fastest is kept.
"""

import datetime
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from tesseral.attention.backends.triton.backend import TritonPlan
from tesseral.attention.backends.triton.gradients import run_gradients
from tesseral.attention.backends.triton.launch import run_dense
from tesseral.attention.backends.triton.tuning import (
    Kernel,
    TileConfig,
    case_of,
    count_splits,
    fitted,
    measured_tiles,
    write_measured,
)
from tesseral.attention.backward import Forward, Gradients
from tesseral.attention.problem import AttentionArrays, AttentionProblem, state_problem
from tesseral.core import PackedTensor
from tesseral.runtime.triton import architecture

DEVICE = "cuda:0"

TILES = [(64, 64, 4), (64, 128, 4), (64, 32, 4), (128, 32, 8), (128, 64, 8), (128, 128, 8)]
"""Rows, keys and warps of a tile of one head."""

ROWS = [(16, 32, 1), (16, 32, 2), (16, 64, 1), (16, 64, 2), (16, 64, 4), (16, 128, 2), (16, 128, 4)]
"""The same for rows of a group."""

GRADIENTS = [(32, 32, 4), (64, 64, 4), (64, 128, 8), (128, 64, 8)]
"""The same for the backward pass."""


def tune(*prefixes: str) -> str:
    """Return the text of this device's data file, the cases that are asked for measured again."""
    found: dict[str, tuple[float, TileConfig]] = {}
    describe = architecture(DEVICE) >= (9, 0)
    for problem, arrays in _calls():
        few = problem.q_len == 1
        kernels: tuple[Kernel, ...] = ("rows",) if few else ("tiles", "gradients")
        for kernel in kernels:
            case = case_of(problem, kernel)
            if case in found or not case.startswith(prefixes or ("",)):
                continue
            for config in _configs(kernel, describe=describe):
                elapsed = _measure(problem, arrays, kernel, config)
                if elapsed is not None and elapsed < found.get(case, (elapsed + 1, config))[0]:
                    found[case] = elapsed, config
    machine = f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, "
    machine += f"Triton {triton.__version__}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    fastest = {case: config for case, (_, config) in found.items()}
    known = measured_tiles(architecture(DEVICE))
    return write_measured({**known, **fastest}, machine, today)


def _calls() -> Iterator[tuple[AttentionProblem, AttentionArrays]]:
    """Yield a call of each case: long sequences, and one token after a long cache."""
    for dtype in (torch.float16, torch.float32):
        for width, length in itertools.product((64, 128, 256), (4096, 1024)):
            batch = 8192 // length
            query, key, value = (_random(batch, 16, length, width, dtype) for _ in range(3))
            for rules in ({}, {"is_causal": True}, {"is_causal": True, "softcap": 30.0}):
                yield _state(AttentionArrays(query=query, key=key, value=value), **rules)
    for width in (64, 128, 256):
        key, value = (_random(1, 8, 131072, width, torch.float16) for _ in range(2))
        query = _random(1, 32, 1, width, torch.float16)
        yield _state(AttentionArrays(query=query, key=key, value=value))
        for bits in (8, 4):
            packed = [_packed(side, bits) for side in (key, value)]
            yield _state(AttentionArrays(query=query, key=packed[0], value=packed[1]))


def _state(
    arrays: AttentionArrays, *, is_causal: bool = False, softcap: float | None = None
) -> tuple[AttentionProblem, AttentionArrays]:
    problem = state_problem(arrays, is_causal=is_causal, scale=None, window=None, softcap=softcap)
    return problem, arrays


def _random(batch: int, heads: int, length: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(batch, heads, length, width, device=DEVICE, dtype=dtype)


def _packed(array: torch.Tensor, bits: int) -> PackedTensor:
    codes = torch.randint(0, 2**bits, array.shape, device=DEVICE, dtype=torch.uint8)
    scale = torch.rand(*array.shape[:-1], 1, device=DEVICE, dtype=array.dtype)
    return PackedTensor.from_codes(codes, scale, -scale, bits=bits)


def _configs(kernel: Kernel, *, describe: bool) -> Iterator[TileConfig]:
    shapes = {"tiles": TILES, "rows": ROWS, "gradients": GRADIENTS}[kernel]
    for q_tile, k_tile, warps in shapes:
        for stages in (1, 2) if kernel == "gradients" else (2, 3, 4):
            for waves in (2, 3, 4, 8) if kernel == "rows" else (2,):
                yield TileConfig(
                    q_tile=q_tile,
                    k_tile=k_tile,
                    warps=warps,
                    stages=stages,
                    describe=describe and kernel != "rows",
                    waves=waves,
                )


def _measure(
    problem: AttentionProblem, arrays: AttentionArrays, kernel: Kernel, config: TileConfig
) -> float | None:
    """Return the median time in milliseconds; ``None`` where the tiles do not fit the chip."""
    config = fitted(problem, kernel, config)
    run = _gradients(problem, arrays, config)
    if kernel != "gradients":
        splits = count_splits(problem, config) if kernel == "rows" else 1
        plan = TritonPlan(
            batch_tile=1,
            head_tile=1,
            q_tile=config.q_tile,
            k_tile=config.k_tile,
            workspace_bytes=0,
            kernel=kernel,
            config=config,
            splits=splits,
        )

        def run() -> None:
            run_dense(problem, arrays, plan)

    try:
        run()
    except triton.runtime.errors.OutOfResources:
        return None
    times: list[float]
    if kernel == "rows":  # too short to be launched from Python one by one
        times = triton.testing.do_bench_cudagraph(run, rep=4, return_mode="all")
    else:
        times = triton.testing.do_bench(run, warmup=2, rep=10, return_mode="all")
    return statistics.median(times)


def _gradients(
    problem: AttentionProblem, arrays: AttentionArrays, config: TileConfig
) -> Callable[[], None]:
    """Return what runs the backward pass; its results are no gradients of anything."""
    query: torch.Tensor = arrays.query
    key: Any = arrays.key
    value: Any = arrays.value

    def run() -> None:
        forward = Forward(
            query=query,
            key=key,
            value=value,
            mask=None,
            sinks=None,
            alibi_slopes=None,
            output=query,
            lse=torch.full_like(query[..., 0], 10.0, dtype=torch.float32),
        )
        room = (torch.empty_like(array) for array in (query, key, value))
        grads = dict(zip(("query", "key", "value"), room, strict=True))
        into = Gradients(**grads, mask=None, sinks=None, alibi_slopes=None)
        run_gradients(problem, forward, query, None, into, config)

    return run


if __name__ == "__main__":
    sys.stdout.write(tune(*sys.argv[1:]))
