"""Attention over several devices: the sum over ranks hides behind the next tile's computation.

Needs torch, and a process group of :mod:`torch.distributed`: NCCL on GPUs, gloo on CPUs.
"""

from tesseral.attention.distributed.costs import Line, OverlapCosts
from tesseral.attention.distributed.groups import overlap_group
from tesseral.attention.distributed.layers import attention_all_reduce, linear_all_reduce
from tesseral.attention.distributed.measure import fastest, measure_costs, measure_linear_costs
from tesseral.attention.distributed.peers import PeerMemory, Peers, peers_refused
from tesseral.attention.distributed.plans import (
    OverlapPlan,
    choose_plan,
    plans,
)
from tesseral.attention.distributed.sequence import gathered_attention, ring_attention

__all__ = [
    "Line",
    "OverlapCosts",
    "OverlapPlan",
    "PeerMemory",
    "Peers",
    "attention_all_reduce",
    "choose_plan",
    "fastest",
    "gathered_attention",
    "linear_all_reduce",
    "measure_costs",
    "measure_linear_costs",
    "overlap_group",
    "peers_refused",
    "plans",
    "ring_attention",
]
