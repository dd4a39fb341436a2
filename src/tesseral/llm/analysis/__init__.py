"""A language model as tensors: heads clustered, errors explained, widths advised."""

from tesseral.llm.analysis.effects import Effects
from tesseral.llm.analysis.errors import ErrorTensor, Setting
from tesseral.llm.analysis.heads import HeadGroups, HeadStatistics
from tesseral.llm.analysis.run import WIDTHS, Analysis, analyze

__all__ = [
    "WIDTHS",
    "Analysis",
    "Effects",
    "ErrorTensor",
    "HeadGroups",
    "HeadStatistics",
    "Setting",
    "analyze",
]
