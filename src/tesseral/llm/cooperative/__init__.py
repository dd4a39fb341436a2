"""Attention whose keys and values lie partly on a device and partly in the host's memory."""

from tesseral.llm.cooperative.cache import CooperativeCache
from tesseral.llm.cooperative.plan import MemoryPlan, plan_memory

__all__ = ["CooperativeCache", "MemoryPlan", "plan_memory"]
