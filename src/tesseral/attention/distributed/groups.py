"""Process groups whose sums leave most of a device to computing."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist


def overlap_group(max_ctas: int | None = None, ranks: Sequence[int] | None = None) -> Any:
    """Return a group whose NCCL kernels go first and take few multiprocessors.

    All ranks of the program call it.

    Parameters
    ----------
    max_ctas : int, optional
        Most multiprocessors that a sum takes; NCCL's choice by default.
    ranks : sequence of int, optional
        Who belongs to it; all by default.

    Returns
    -------
    ProcessGroup
        On gloo a plain one.
    """
    if dist.get_backend() != "nccl":
        return dist.new_group(ranks)
    options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
    if max_ctas is not None:
        options.config.min_ctas, options.config.max_ctas = 1, max_ctas
    return dist.new_group(ranks, pg_options=options)
