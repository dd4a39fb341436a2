"""Attention to keys that lie partly on a device, in the host's memory or on other ranks."""

from tesseral.llm.cooperative.cache import CooperativeCache
from tesseral.llm.cooperative.plan import MemoryPlan, plan_memory
from tesseral.llm.cooperative.sequence import SequenceCache
from tesseral.llm.cooperative.turns import continue_in_turns

__all__ = ["CooperativeCache", "MemoryPlan", "SequenceCache", "continue_in_turns", "plan_memory"]
