"""Linear layers on a CUDA device: ours in 4 bits against cuBLAS and torch's low-bit products."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tesseral.bench.graphs import Call, copy_bytes_per_s, interleave_graphs
from tesseral.bench.linear.cases import Case
from tesseral.bench.timing import Timing, ratio
from tesseral.core.kronecker import balanced_factors, kronecker_apply
from tesseral.quantization.kernels.registry import BACKENDS
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear
from tesseral.quantization.numerics import symmetric_codes, symmetric_scale
from tesseral.runtime.machine import machine_record

SCHEMA = "tesseral.bench.linear.cuda/1"
FP16 = "cuBLAS fp16"
EXACT = "ours, exact int8"
UNFUSED = "unfused torch"
COPY = "copy bandwidth"
BEYOND_CACHE = 2**28
"""Bytes of weights that a side goes through in a graph where they are to be read from memory."""

Watch = Callable[[str], None]
"""Told what is measured next."""

LAYERS: tuple[tuple[Case, dict[str, float]], ...] = (
    (Case(tokens=4096, out_features=14336, dtype="float16"), {"ours": 1.4, EXACT: 1.1}),
    (Case(tokens=1, out_features=14336, dtype="float16"), {"ours": 2.5}),
    (Case(tokens=16, out_features=14336, dtype="float16"), {"ours": 2.5}),
    (Case(tokens=16, out_features=14336, dtype="float16", activation_bits=8), {}),
    (Case(tokens=1, out_features=14336, dtype="float16", activation_bits=16), {}),
    (Case(tokens=16, out_features=14336, dtype="float16", activation_bits=16), {}),
    (Case(tokens=64, out_features=14336, dtype="float16"), {}),
    (Case(tokens=1, in_features=14336, dtype="float16"), {}),
    (Case(tokens=16, in_features=14336, dtype="float16"), {}),
)
"""Layers, and how many times as fast as cuBLAS in float16 a side must be."""

ROWS: tuple[tuple[int, float | None], ...] = (
    (4096, 6.0),
    (14336, 3.0),
    (5120, None),
    (11008, None),
    (18944, None),
    (28672, None),
)
"""Widths of rows, and how many times as fast as torch's operations one by one ours must be."""

LEAST_SHARE = 0.35
"""Of copy bandwidth, at a width of 4096."""


@torch.inference_mode()
def run(*, quick: bool, watch: Watch) -> dict[str, Any]:
    """Measure everything and return a record of plain values."""
    repeats = 5 if quick else 21
    watch("copy bandwidth")
    copy = copy_bytes_per_s()
    rows = []
    for case, needed in LAYERS:
        watch(case.name)
        rows.append(_layer_record(case, needed, repeats))
        torch.cuda.empty_cache()
    for width, needed_ratio in ROWS:
        watch(f"rows of {width}")
        rows.append(_rows_record(width, needed_ratio, copy, repeats))
        torch.cuda.empty_cache()
    return {
        "schema": SCHEMA,
        "machine": machine_record().as_dict(),
        "device": torch.cuda.get_device_name(),
        "ceilings": {"copy": copy},
        "rows": rows,
    }


def _layer_record(case: Case, needed: dict[str, float], repeats: int) -> dict[str, Any]:
    timings = interleave_graphs(layer_sides(case), repeats)
    ratios = {name: ratio(timings[FP16], timings[name]) for name in timings if name != FP16}
    bars = [
        {"side": name, "against": FP16, "at_least": least, "measured": ratios[name]}
        for name, least in needed.items()
    ]
    return _record(case.name, asdict(case), timings, ratios, {}, bars)


def _rows_record(width: int, needed: float | None, copy: float, repeats: int) -> dict[str, Any]:
    tokens = 4096
    timings = interleave_graphs(rows_sides(tokens, width, compiled=needed is not None), repeats)
    ratios = {name: ratio(timings[UNFUSED], timings[name]) for name in timings if name != UNFUSED}
    moved = tokens * width * (2 + 0.5)
    share = moved / timings["ours, packed"].median_s / copy
    bars = []
    if needed is not None:
        bars.append({"side": "ours", "against": UNFUSED, "at_least": needed})
        bars[-1]["measured"] = ratios["ours"]
    if width == 4096:
        bars.append({"side": "ours, packed", "against": COPY, "at_least": LEAST_SHARE})
        bars[-1]["measured"] = share
    name = f"transform and quantise {tokens} rows of {width}"
    case = {"tokens": tokens, "width": width}
    return _record(name, case, timings, ratios, {COPY: share}, bars)


def _record(
    name: str,
    case: dict[str, Any],
    timings: dict[str, Timing],
    ratios: dict[str, float],
    shares: dict[str, float],
    bars: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "name": name,
        "case": case,
        "timings": {side: timing.as_dict() for side, timing in timings.items()},
        "ratios": ratios,
        "shares": shares,
        "bars": [bar | {"met": bar["measured"] >= bar["at_least"]} for bar in bars],
    }


def layer_sides(case: Case) -> dict[str, Sequence[Call]]:
    """Return the calls of each side; with few tokens each reads weights that no cache holds."""
    dtype = getattr(torch, case.dtype)
    m, n_in, n_out = case.tokens, case.in_features, case.out_features
    x = torch.randn(m, n_in, device="cuda", dtype=dtype)
    few = m <= 64
    dense = _copies(few, 2 * n_in * n_out, lambda: _normal(n_out, n_in, dtype))
    layers = _copies(few, n_in * n_out // 2, lambda: quantized_layer(case))
    sides: dict[str, Sequence[Call]] = {
        FP16: [_bound(torch.nn.functional.linear, x, weight) for weight in dense],
        "ours": [_bound(layer, x) for layer in layers],
    }
    if few:
        return sides
    sides[EXACT] = [_exact_call(layers[0], x)]
    codes = torch.randint(-8, 8, (m, n_in), dtype=torch.int8, device="cuda")
    weight = torch.randint(-8, 8, (n_out, n_in), dtype=torch.int8, device="cuda")
    sides["torch int8, product alone"] = [lambda: torch._int_mm(codes, weight.mT)]
    if torch.cuda.get_device_capability() >= (8, 9):
        floats, others = codes.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        one = torch.ones((), device="cuda")
        sides["torch fp8, product alone"] = [
            lambda: torch._scaled_mm(floats, others.mT, scale_a=one, scale_b=one, out_dtype=dtype)
        ]
    return sides


def rows_sides(tokens: int, width: int, *, compiled: bool) -> dict[str, Sequence[Call]]:
    """Return the ways to transform and quantise rows, each over several of them in turn."""
    from tesseral.quantization.kernels.triton import rows

    source = quantized_input(Case(tokens=tokens, in_features=width, dtype="bfloat16"))
    inputs = [_normal(tokens, width, torch.bfloat16) for _ in range(3)]
    factors = source.transform.factors
    ready = rows.prepare(width, factors, torch.float16)
    short = [None if factor is None else factor.bfloat16() for factor in factors]
    clip = source.clip.bfloat16()
    sides: dict[str, Sequence[Call]] = {
        "ours": [_bound(source.compute, x) for x in inputs],
        "ours, packed": [
            _bound(lambda x: rows.quantize_rows(x, ready, source.clip, 4, form="pairs"), x)
            for x in inputs
        ],
        UNFUSED: [_bound(_unfused, x, short, clip) for x in inputs],
    }
    if compiled:
        together: Any = torch.compile(_unfused)
        sides["torch.compile"] = [_bound(together, x, short, clip) for x in inputs]
    return sides


def _unfused(x: Tensor, factors: list[Tensor], clip: Tensor) -> tuple[Tensor, Tensor]:
    """Transform and quantise rows by torch's operations in the type of the rows."""
    values = kronecker_apply(x, factors)
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    scale = symmetric_scale(low * clip[:1], high * clip[1:], 4)
    return symmetric_codes(values, scale, 4).to(torch.int8), scale


def quantized_input(case: Case) -> QuantizedInput:
    """Return an input with random orthogonal factors."""
    source = QuantizedInput(balanced_factors(case.in_features), bits=case.activation_bits).cuda()
    for factor in source.transform.buffers():
        factor.copy_(torch.linalg.qr(torch.randn(factor.shape, device="cuda"))[0])
    return source


def quantized_layer(case: Case) -> QuantizedLinear:
    """Return a layer with random codes and an input of its own."""
    layer = QuantizedLinear(
        case.in_features, case.out_features, quantized_input(case), bias=False, bits=4
    ).cuda()
    layer.weight_codes.random_(0, 256)
    layer.weight_scale.uniform_(0.005, 0.015)
    return layer


def _copies(few: bool, n_bytes: int, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(max(2, -(-BEYOND_CACHE // n_bytes)) if few else 1)]


def _normal(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(rows, columns, device="cuda", dtype=dtype)


def _bound(function: Callable[..., Any], *given: Any) -> Call:
    return lambda: function(*given)


def _exact_call(layer: QuantizedLinear, x: Tensor) -> Call:
    def call() -> Tensor:
        with forced("triton-int8"):
            result: Tensor = layer(x)
            return result

    return call


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Let layers run on the backend of this name."""
    before = os.environ.get(BACKENDS.env)
    os.environ[BACKENDS.env] = name
    try:
        yield
    finally:
        os.environ.pop(BACKENDS.env)
        if before is not None:
            os.environ[BACKENDS.env] = before
