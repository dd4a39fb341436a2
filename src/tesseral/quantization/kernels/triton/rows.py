"""Launching the kernel that turns rows into codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import triton
from torch import Tensor

from tesseral.core.kronecker import balanced_factors
from tesseral.quantization.kernels.problem import LinearProblem
from tesseral.quantization.kernels.registry import BACKENDS
from tesseral.quantization.kernels.triton import device as gpu
from tesseral.quantization.kernels.triton.kernels.rows import quantize_rows_kernel
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.triton import interpreted, overlaps

FEW = 64
"""Rows that are multiplied with weights as these are read; for more, they are widened before."""

Form: TypeAlias = Literal["bytes", "pairs", "floats"]
"""How codes are stored; see the kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """RMSNorm before the transform: weights of shape (n,), and what is added to the mean square."""

    weight: Tensor
    epsilon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """The two factors as the kernel reads them: padded, and divided by powers of two.

    Attributes
    ----------
    sizes, padded : pair of int
        Of the matrix that a row is laid out as, and of the tile around it.
    left, right : tensor or None
        The first factor transposed, and the second.
    unit : float
        Product of the powers of two.
    """

    sizes: tuple[int, int]
    padded: tuple[int, int]
    left: Tensor | None
    right: Tensor | None
    unit: float


def layout(width: int, sizes: Sequence[int | None]) -> tuple[int, int]:
    """Return the sizes of the matrix that a row is laid out as."""
    first, second = sizes
    if first is not None:
        return first, width // first
    return balanced_factors(width) if second is None else (width // second, second)


def pads(sizes: tuple[int, int]) -> tuple[int, int]:
    """Return the sizes of the tile around a matrix: powers of two that tensor cores take."""
    first, second = (max(16, triton.next_power_of_2(size)) for size in sizes)
    return first, second


def largest_tile(dtype: torch.dtype) -> int:
    """Return how many elements, padded, a row of a type may have for a program to hold it."""
    room = 2**15 if gpu.has_wide_memory() else 2**14
    return room // 4 if dtype == torch.float32 else room


def power_of_two(matrix: Tensor) -> float:
    """Return the power of two that divides the elements of a matrix to at most 1."""
    exponent = int(torch.frexp(matrix.abs().max())[1].item())
    return float(2.0**exponent)


def prepare(width: int, factors: Sequence[Tensor | None], dtype: torch.dtype) -> Factors:
    """Return factors for rows of a width, in the type of their products."""
    sizes = layout(width, [None if f is None else f.shape[0] for f in factors])
    padded, unit = pads(sizes), 1.0
    ready: list[Tensor | None] = []
    for factor, size, transposed in zip(factors, padded, (True, False), strict=True):
        if factor is None:
            ready.append(None)
            continue
        power = 1.0
        if dtype == torch.float16:
            power = power_of_two(factor)
        room = torch.zeros(size, size, dtype=dtype, device=factor.device)
        matrix = factor.mT if transposed else factor
        room[: len(factor), : len(factor)] = matrix / power
        ready.append(room)
        unit *= power
    return Factors(sizes=sizes, padded=padded, left=ready[0], right=ready[1], unit=unit)


def form_for(x: Tensor, bits: int) -> Form:
    """Return how codes of rows (m, n) should be stored for the products that follow."""
    many = len(x) > FEW and x.dtype != torch.float32
    return "floats" if many and _wants_floats(x.shape[-1], bits) else "bytes"


def _wants_floats(width: int, bits: int) -> bool:
    """Return whether products of such rows are those of the backend that takes float8."""
    if bits > 4 or not gpu.has_float8():
        return False
    problem = LinearProblem(device="cuda", weight_bits=4, activation_bits=bits, in_features=width)
    return BACKENDS.choose(problem).name == "triton"


def remembered(
    memo: dict[str, Any], width: int, factors: Sequence[Tensor | None], dtype: torch.dtype
) -> Factors:
    """Return what :func:`prepare` does for rows of a type, or did at the last call."""
    working = torch.float32 if dtype == torch.float32 else torch.float16
    present = [factor for factor in factors if factor is not None]
    places = (working, *map(gpu.place_of, present))
    found = memo.get("triton")
    if found is None or found[0] != places:
        found = memo["triton"] = (places, prepare(width, factors, working))
    ready: Factors = found[1]
    return ready


def _launch_for(tile: int, *, lean: bool) -> tuple[int, int, int | None]:
    """Return warps of a program, programs for each multiprocessor and registers of a thread.

    The widest rows of 9.0 that are transformed, and keep no weights of a norm, fit into half as
    many registers by twice as many threads: two programs then fill a multiprocessor.
    """
    if lean and 2**13 < tile <= 2**14 and cuda.capability("cuda") == (9, 0):
        return 8, 2, 128
    waves = 16 if tile <= 2**12 else 3 if tile <= 2**13 else 2
    return 4 if tile <= 2**14 else 8, waves, None


def quantize_rows(
    x: Tensor,
    factors: Factors,
    clip: Tensor,
    bits: int,
    *,
    form: Form = "bytes",
    gate: Tensor | None = None,
    norm: Norm | None = None,
    warps: int | None = None,
    stages: int = 1,
    waves: int | None = None,
    registers: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return codes and float32 scales of rows (m, n), transformed, in one launch.

    Parameters
    ----------
    x : tensor of shape (m, n)
        Neighbours in a row lie side by side.
    factors : Factors
        As :func:`prepare` gives them.
    clip : tensor of shape (2,)
        Fractions of each row's minimum and maximum to keep.
    bits : int
        Width of the codes.
    form : {"bytes", "pairs", "floats"}
        int8, two codes of 4 bits in a byte (of an even second size), or float8.
    gate : tensor of shape (m, n), optional
        ``silu(gate) * x`` is what is transformed.
    norm : Norm, optional
        What is applied before.
    warps, stages, waves, registers : int, optional
        Warps of a program, rows on their way at once, programs for each multiprocessor, and
        registers of a thread at most.
    """
    m, n = x.shape
    first, second = factors.padded
    kinds = {"bytes": torch.int8, "pairs": torch.uint8, "floats": torch.float8_e4m3fn}
    codes = torch.empty(m, n // 2 if form == "pairs" else n, dtype=kinds[form], device=x.device)
    scale = torch.empty(m, 1, dtype=torch.float32, device=x.device)
    half = x.dtype != torch.float32
    tile = first * second
    transformed = factors.left is not None or factors.right is not None
    chosen = _launch_for(tile, lean=transformed and norm is None)
    warps, waves, registers = warps or chosen[0], waves or chosen[1], registers or chosen[2]
    programs = min(m, cuda.multiprocessors() * waves)
    if not programs:
        return codes, scale
    dependent = overlaps("cuda")
    options: dict[str, Any] = {"launch_pdl": True} if dependent else {}
    if registers is not None:
        options["maxnreg"] = registers
    quantize_rows_kernel[(programs,)](
        x,
        gate,
        None if norm is None else norm.weight,
        factors.left,
        factors.right,
        clip,
        codes.view(torch.uint8) if form == "floats" else codes,
        scale,
        m,
        x.stride(0),
        0 if gate is None else gate.stride(0),
        0.0 if norm is None else norm.epsilon,
        factors.unit,
        SIZE_1=factors.sizes[0],
        SIZE_2=factors.sizes[1],
        PAD_1=first,
        PAD_2=second,
        LEFT=factors.left is not None,
        RIGHT=factors.right is not None,
        NORM=norm is not None,
        GATED=gate is not None,
        HALF=half,
        PRECISION=None if half else ("ieee" if interpreted() else "tf32x3"),
        BITS=bits,
        FORM=form,
        STAGES=stages,
        ASSEMBLY=not interpreted(),
        DEPENDENT=dependent,
        num_warps=warps,
        **options,
    )
    return codes, scale
