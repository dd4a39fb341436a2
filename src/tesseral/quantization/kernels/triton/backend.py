"""Linear products and the rows they read on CUDA devices, in Triton."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tesseral.core.packed import PackedTensor
from tesseral.quantization.kernels.heads import HeadsProblem, Places
from tesseral.quantization.kernels.heads_portable import PortableHeads
from tesseral.quantization.kernels.portable import PortableRows
from tesseral.quantization.kernels.problem import LinearProblem, RowsProblem, StoredWeight
from tesseral.quantization.kernels.triton.device import on, place_of
from tesseral.quantization.kernels.weight_only import WeightOnlyProblem
from tesseral.quantization.kernels.weight_only_portable import PortableWeightOnly
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.triton import ready

if TYPE_CHECKING:
    from tesseral.quantization.kernels.triton.products import Weights

_ROWS = ("float32", "bfloat16", "float16")
_UNIT = 32
"""Rows of weights are whole vectors of 16 bytes."""

_RESULTS = ("float16", "bfloat16")
_WORDS = 64
"""Columns of a weight that is multiplied alone: whole vectors, and some words for a tile."""

LONGEST = 2**15
"""Elements that a row may have which is not quantised."""

LARGEST_FACTOR = 256
"""Size, padded, that a factor may have."""


class TritonLinear:
    """Multiplies packed 4-bit weights: few rows as they are read, many after widening to bytes.

    Many rows of at most 4 bits come in float8 where tensor cores multiply it, with sums in float32
    now and then, which was exact wherever it was measured. ``triton-int8`` is exact by its type.
    """

    name = "triton"

    def supports(self, problem: LinearProblem) -> Verdict:
        """Support 4-bit weights with one scale a row."""
        verdict = ready(problem.device)
        if not verdict.ok:
            return verdict
        if problem.weight_bits != 4:
            return Verdict(False, f"reads 4-bit weights, got {problem.weight_bits} bits")
        if problem.groups != 1:
            return Verdict(False, f"takes one scale a row, got {problem.groups}")
        if problem.in_features % _UNIT:
            return Verdict(False, f"takes multiples of {_UNIT} columns, got {problem.in_features}")
        return YES

    def linear(self, codes: Tensor, weight: PackedTensor) -> Tensor:
        """Return ``codes @ weight.codes().T`` as int32, exact for int8 codes."""
        from tesseral.quantization.kernels.triton import products

        stored = StoredWeight(weight.data, weight.scale, None, 4, weight.length)
        rows = _rows(codes, weight.length)
        scale = torch.ones(len(rows), 1, device=codes.device)
        with on(codes.device):
            sums = products.multiply(rows, scale, products.side_by_side([stored]), torch.int32)
        return sums.reshape(*codes.shape[:-1], sums.shape[-1])

    def linears(
        self,
        codes: Tensor,
        scale: Tensor,
        weights: Sequence[StoredWeight],
        dtype: torch.dtype,
        memo: dict[str, Any],
    ) -> list[Tensor]:
        """Return the scaled products of all weights, of up to three in one launch."""
        from tesseral.quantization.kernels.triton import products

        rows = _rows(codes, weights[0].length)
        rates = scale.reshape(-1, 1).float().contiguous()
        lead, outputs = codes.shape[:-1], []
        for start in range(0, len(weights), products.TOGETHER):
            together = _remembered(memo, start, weights[start : start + products.TOGETHER])
            with on(codes.device):
                output = products.multiply(rows, rates, together, dtype)
            parts = output.split([len(part) for part in together.codes], dim=1)
            outputs += [part.view(*lead, part.shape[-1]) for part in parts]
        return outputs


class TritonExactLinear(TritonLinear):
    """The same with exact sums whatever the width: rows stay int8."""

    name = "triton-int8"


class TritonRows:
    """Transforms a row and turns it into codes in one launch, where a program can hold it.

    Wider rows and larger factors than :func:`fits` go through torch's operations. With 16-bit
    rows, transforms are products of float16 with float32 sums, after a division by powers of two.
    """

    name = "triton"

    def supports(self, problem: RowsProblem) -> Verdict:
        """Support floating rows with clips in float32."""
        verdict = ready(problem.device)
        if not verdict.ok:
            return verdict
        if problem.working_dtype != "float32":
            return Verdict(False, f"computes in float32, got {problem.working_dtype}")
        if problem.dtype not in _ROWS:
            return Verdict(False, f"reads {', '.join(_ROWS)}, got {problem.dtype}")
        return YES

    def quantize(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None],
        clip: Tensor,
        bits: int,
        memo: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Return codes, in float8 where :class:`TritonLinear` multiplies that, and scales."""
        from tesseral.quantization.kernels.triton import rows

        width = x.shape[-1]
        flat = x.detach().reshape(-1, width)
        if flat.stride(-1) != 1:
            flat = flat.contiguous()
        sizes = [None if factor is None else len(factor) for factor in factors]
        if not fits(width, sizes, flat.dtype).ok:
            return PortableRows().quantize(x, factors, clip, bits, memo)
        form = rows.form_for(flat, bits)
        ready_factors = rows.remembered(memo, width, factors, flat.dtype)
        with on(flat.device):
            codes, scale = rows.quantize_rows(flat, ready_factors, clip, bits, form=form)
        return codes.view(x.shape), scale.view(*x.shape[:-1], 1)


class TritonWeightOnly:
    """Reads packed weights at the speed of memory; rows are 16-bit, sums float32.

    Few rows are multiplied with the codes themselves. For many, the weight's values are made in the
    rows' type and multiplied by torch.
    """

    name = "triton"

    def supports(self, problem: WeightOnlyProblem) -> Verdict:
        """Support 4-bit weights with one scale a row, and results of 16 bits."""
        verdict = ready(problem.device)
        if not verdict.ok:
            return verdict
        if problem.working_dtype != "float32":
            return Verdict(False, f"reads scales in float32, not in {problem.working_dtype}")
        reason = _refuse_weight_only(problem)
        return Verdict(not reason, reason)

    def transform(self, x: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
        """Return the transformed rows by torch's products."""
        return PortableWeightOnly().transform(x, factors)

    def linear(
        self, x: Tensor, weight: StoredWeight, dtype: torch.dtype, memo: dict[str, Any]
    ) -> Tensor:
        """Return the product; few rows are rounded to float16 of their size, many to ``dtype``."""
        from tesseral.quantization.kernels.triton import weight_only

        del memo
        rows = _side_by_side(x, weight.length)
        with on(rows.device):
            (y,) = weight_only.multiply(rows, [weight], dtype)
        return y.view(*x.shape[:-1], len(weight.codes))

    def multiply_rows(
        self,
        x: Tensor,
        factors: Sequence[Tensor | None],
        weights: Sequence[StoredWeight],
        memo: dict[str, Any],
    ) -> list[Tensor] | None:
        """Return the products of transformed rows in their type, or ``None`` if they do not fit.

        The transform is one launch, of products of float16 with float32 sums.
        """
        from tesseral.quantization.kernels.triton import rows, weight_only

        width = x.shape[-1]
        if not fits(width, [None if f is None else len(f) for f in factors], x.dtype).ok:
            return None
        ready_factors = None
        if any(factor is not None for factor in factors):
            ready_factors = rows.remembered(memo, width, factors, x.dtype)
            if not weight_only.transforms(ready_factors):
                return None
        flat = _side_by_side(x, width)
        with on(flat.device):
            products = weight_only.multiply(flat, weights, x.dtype, ready_factors)
        return [product.view(*x.shape[:-1], product.shape[-1]) for product in products]


class TritonHeads:
    """Transforms rows of heads and packs them in one launch, as :class:`TritonRows` rows."""

    name = "triton"

    def supports(self, problem: HeadsProblem) -> Verdict:
        """Support codes of 4 and 8 bits of heads of an even size up to 256."""
        verdict = ready(problem.device)
        if not verdict.ok:
            return verdict
        if problem.working_dtype != "float32" or problem.dtype not in _ROWS:
            return Verdict(False, f"reads {', '.join(_ROWS)} and computes in float32")
        if problem.gradient:
            return Verdict(False, "gives no gradients")
        if problem.bits not in (4, 8, 16):
            return Verdict(False, f"packs codes of 4 or 8 bits, got {problem.bits}")
        if problem.head_dim % 2 or problem.head_dim > LARGEST_FACTOR:
            return Verdict(
                False, f"takes even sizes up to {LARGEST_FACTOR}, got {problem.head_dim}"
            )
        return YES

    def transform(self, x: Tensor, factor: Tensor) -> Tensor:
        """Return heads times a matrix, by torch's product."""
        return PortableHeads().transform(x, factor)

    def encode(
        self, x: Tensor, factor: Tensor | None, clip: Tensor, bits: int, places: Places
    ) -> None:
        """Write codes, scales and offsets."""
        from tesseral.quantization.kernels.triton import heads

        x = x.detach()
        if x.stride(-1) != 1:
            x = x.contiguous()
        with on(x.device):
            matrix = heads.prepare_matrix(factor, x.dtype)
            heads.encode_heads(x, matrix, clip, bits, places)


def _refuse_weight_only(problem: WeightOnlyProblem) -> str:
    """Return why a product cannot run on any device, nothing if it can."""
    length = problem.in_features
    if problem.gradient:
        return "gives no gradients"
    if problem.dtype not in _RESULTS:
        return f"gives {' and '.join(_RESULTS)}, not {problem.dtype}"
    if problem.weight_bits != 4:
        return f"reads 4-bit weights, got {problem.weight_bits} bits"
    if problem.groups != 1:
        return f"takes one scale a row, got {problem.groups}"
    if length % _WORDS or length > LONGEST:
        return f"takes multiples of {_WORDS} columns up to {LONGEST}, got {length}"
    return ""


def fits(width: int, factors: Sequence[int | None], dtype: torch.dtype) -> Verdict:
    """Return whether a program can hold a row of a type, and factors of these sizes."""
    from tesseral.quantization.kernels.triton.rows import largest_tile, layout, pads

    padded = pads(layout(width, factors))
    for size, factor in zip(padded, factors, strict=True):
        if factor is not None and size > LARGEST_FACTOR:
            return Verdict(False, f"takes factors up to {LARGEST_FACTOR}, got {factor}")
    room = largest_tile(dtype)
    if padded[0] * padded[1] > room:
        return Verdict(False, f"holds {dtype} rows up to {room} elements, padded; got {width}")
    return YES


def _side_by_side(x: Tensor, length: int) -> Tensor:
    """Return rows (m, length), whose elements are neighbours."""
    rows = x.detach().reshape(-1, length)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _rows(codes: Tensor, length: int) -> Tensor:
    rows = codes.reshape(-1, length)
    return rows if rows.is_contiguous() else rows.contiguous()


def _remembered(memo: dict[str, Any], start: int, weights: Sequence[StoredWeight]) -> "Weights":
    """Return weights as the kernels read them, from the last call where they are the same."""
    from tesseral.quantization.kernels.triton.products import side_by_side

    arrays = [(w.codes, w.scale, w.bias) for w in weights]
    places = [place_of(a) for group in arrays for a in group if a is not None]
    found = memo.get(f"triton {start}")
    if found is None or found[0] != places:
        found = memo[f"triton {start}"] = (places, side_by_side(weights))
    weights_there: Weights = found[1]
    return weights_there
