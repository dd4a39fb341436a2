"""Reading keys and values once and nothing else: what no kernel of one token can go below."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.cuda.overlap import let_next_start, wait_for_previous
from tesseral.runtime.triton import overlaps

_BLOCK = 1024
"""Words of each array that a program reads at once."""

_WAVES = 8
"""Programs for each multiprocessor: the fastest of 1, 2, 4 and 8 on an H200."""


@triton.jit
def reading_kernel(first, second, sums, words, DEPENDENT: tl.constexpr, BLOCK: tl.constexpr):
    """Write the sum of each program's words of two arrays, so that they have to be read."""
    if DEPENDENT:
        let_next_start()
        wait_for_previous()
    part = tl.cdiv(words, tl.num_programs(0) * BLOCK) * BLOCK
    total = tl.zeros([BLOCK], tl.int32)
    for start in tl.range(0, part, BLOCK, num_stages=1):
        at = tl.program_id(0).to(tl.int64) * part + start + tl.arange(0, BLOCK)
        total += tl.load(first + at, mask=at < words, other=0)
        total += tl.load(second + at, mask=at < words, other=0)
    tl.store(sums + tl.program_id(0), tl.sum(total))


def reader(device: str = "cuda") -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that sums the 32-bit words of two contiguous tensors of equal size.

    It returns one sum for each program, in int32, in room that the next call uses again.
    """
    programs = _WAVES * cuda.multiprocessors(device)
    sums = torch.empty(programs, dtype=torch.int32, device=device)
    dependent = overlaps(device)
    options = {"launch_pdl": True} if dependent else {}

    def read(first: Tensor, second: Tensor) -> Tensor:
        words = first.view(torch.int32).numel()
        reading_kernel[(programs,)](
            first.view(torch.int32),
            second.view(torch.int32),
            sums,
            words,
            DEPENDENT=dependent,
            BLOCK=_BLOCK,
            num_warps=8,
            **options,
        )
        return sums

    return read
