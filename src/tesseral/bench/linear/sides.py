"""Ours and others, as calls to be timed."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor

from tesseral._errors import TesseralError
from tesseral.bench.linear.cases import INT8, Case
from tesseral.core.kronecker import balanced_factors
from tesseral.core.packing import pack
from tesseral.quantization.kernels.portable import PortableLinear, PortableRows
from tesseral.quantization.kernels.weight_only_portable import PortableWeightOnly
from tesseral.quantization.linear import QuantizedActivation, QuantizedInput, QuantizedLinear
from tesseral.runtime.large_pages import LARGE_PAGE, new_map

Call = Callable[[], object]
_SMALLEST_INT8 = 17  # tokens that torch's product takes


def sides(case: Case, copies: Mapping[str, int]) -> dict[str, Call]:
    """Return every side of a case by name, ours checked against torch's operations.

    Parameters
    ----------
    case : Case
    copies : mapping of str to int
        How many weights a side takes in turn, so that none is found in a cache.
    """
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    x = torch.randn(case.tokens, case.in_features, generator=generator).to(dtype)
    layers = [
        quantized_layer(case, quantized_input(case, generator), generator)
        for _ in range(copies["ours"])
    ]
    if len(layers) > 1:
        for layer in layers:
            layer.weight_codes = in_large_pages(layer.weight_codes)
    check(layers[0], x)
    found = {"ours": taking_turns(layers, x)}
    name = f"torch {case.dtype}"
    shape = (case.out_features, case.in_features)
    dense = [torch.randn(shape, generator=generator).to(dtype) for _ in range(copies[name])]
    if len(dense) > 1:
        dense = [in_large_pages(weight) for weight in dense]
    found[name] = taking_turns([torch.nn.functional.linear], x, dense)
    if case.tokens >= _SMALLEST_INT8:
        codes = torch.randint(-8, 8, x.shape, generator=generator, dtype=torch.int8)
        weight = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8).T
        found[INT8] = lambda: torch._int_mm(codes, weight)
    return found


def in_large_pages(weight: Tensor) -> Tensor:
    """Return a copy in large pages, where ``load`` puts weights, if the system gives any."""
    memory = new_map(weight.nbytes + LARGE_PAGE)
    if memory is None:
        return weight
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % LARGE_PAGE
    place = torch.frombuffer(memory, dtype=weight.dtype, count=weight.numel(), offset=start)
    return place.view(weight.shape).copy_(weight)


def input_sides(case: Case) -> dict[str, Call]:
    """Return the two ways to transform and quantise rows."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, case.dtype)
    x = torch.randn(case.tokens, case.in_features, generator=generator).to(dtype)
    source = quantized_input(case, generator)
    factors = source.transform.factors
    unfused = PortableRows()
    ours, theirs = source.quantize(x), unfused.quantize(x, factors, source.clip, source.bits, {})
    if not isinstance(ours, QuantizedActivation) or not torch.allclose(
        ours.scale, theirs[1], rtol=2**-6 if dtype == torch.bfloat16 else 1e-5
    ):
        raise TesseralError("bench linear: fused and unfused scales differ.")
    return {
        "ours": lambda: source.quantize(x),
        "unfused": lambda: unfused.quantize(x, factors, source.clip, source.bits, {}),
    }


def quantized_input(case: Case, generator: torch.Generator) -> QuantizedInput:
    """Return an input with random orthogonal factors."""
    source = QuantizedInput(balanced_factors(case.in_features), bits=case.activation_bits)
    for factor in source.transform.buffers():
        factor.copy_(torch.linalg.qr(torch.randn(factor.shape, generator=generator))[0])
    return source


def quantized_layer(
    case: Case, source: QuantizedInput, generator: torch.Generator
) -> QuantizedLinear:
    """Return a layer over the input, with random codes and scales."""
    layer = QuantizedLinear(
        case.in_features,
        case.out_features,
        source,
        bias=False,
        bits=case.weight_bits,
        group_size=case.group_size,
    )
    codes = torch.randint(
        -8, 8, (case.out_features, case.in_features), generator=generator, dtype=torch.int8
    )
    layer.weight_codes.copy_(pack(codes, case.weight_bits))
    layer.weight_scale.uniform_(0.005, 0.015, generator=generator)
    return layer


def check(layer: QuantizedLinear, x: Tensor) -> None:
    """Compare a few tokens with torch's operations on the same codes.

    Raises
    ------
    TesseralError
        If they differ by more than roundings explain.
    """
    prepared = layer._source[0].quantize(x[:3])
    if isinstance(prepared, QuantizedActivation):
        (expected,) = PortableLinear().linears(
            prepared.codes, prepared.scale, [layer.stored], torch.float32, {}
        )
    else:
        expected = PortableWeightOnly().linear(prepared, layer.stored, torch.float32, {})
    found = layer(x[:3]).float()
    step = 2.0**-7 if x.dtype == torch.bfloat16 else 1e-5
    if not torch.allclose(found, expected, rtol=step, atol=step * expected.abs().max().item()):
        raise TesseralError("bench linear: the kernel and torch's operations differ.")


def taking_turns(
    functions: Sequence[Callable[..., Tensor]], x: Tensor, others: list[Tensor] | None = None
) -> Call:
    """Return a call that takes the next function, or the next weight, each time."""
    turns = cycle(functions)
    if others is None:
        return lambda: next(turns)(x)
    weights = cycle(others)
    return lambda: next(turns)(x, next(weights))
