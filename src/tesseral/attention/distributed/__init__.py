"""Attention over several devices: the sum over ranks hides behind the next tile's computation.

Needs torch, and a process group of :mod:`torch.distributed`: NCCL on GPUs, gloo on CPUs.
"""

from tesseral.attention.distributed.costs import Line, OverlapCosts, choose_tiles, measure_costs
from tesseral.attention.distributed.layers import attention_all_reduce, linear_all_reduce

__all__ = [
    "Line",
    "OverlapCosts",
    "attention_all_reduce",
    "choose_tiles",
    "linear_all_reduce",
    "measure_costs",
]
