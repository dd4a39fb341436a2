"""Attention whose keys and values lie partly on a device and partly in the host's memory."""

from tesseral.llm.cooperative.cache import CooperativeCache
from tesseral.llm.cooperative.plan import MemoryPlan, plan_memory
from tesseral.llm.cooperative.turns import continue_in_turns

__all__ = ["CooperativeCache", "MemoryPlan", "continue_in_turns", "plan_memory"]
