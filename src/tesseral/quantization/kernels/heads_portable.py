"""Heads of queries, keys and values through torch's own operations, on every device."""

import torch
from torch import Tensor

from tesseral.core.packing import pack, storage_bits
from tesseral.quantization.kernels.heads import HeadsProblem, Places
from tesseral.quantization.numerics import asymmetric_codes, asymmetric_scale, row_range
from tesseral.runtime.registry import YES, Verdict


class PortableHeads:
    """Transforms and encodes heads operation by operation."""

    name = "portable"

    def supports(self, problem: HeadsProblem) -> Verdict:
        """Support everything."""
        del problem
        return YES

    def transform(self, x: Tensor, factor: Tensor) -> Tensor:
        """Return heads times a matrix."""
        return (x.to(factor.dtype) @ factor).to(x.dtype)

    def encode(
        self, x: Tensor, factor: Tensor | None, clip: Tensor, bits: int, places: Places
    ) -> None:
        """Write codes, scales and offsets."""
        values = (x if factor is None else self.transform(x, factor)).to(clip.dtype)
        scale, offset = asymmetric_scale(*row_range(values, clip), bits)
        codes = asymmetric_codes(values, scale, offset, bits).to(torch.uint8)
        places.data.copy_(pack(codes, storage_bits(bits)))
        places.scale.copy_(scale)
        places.offset.copy_(offset)
