"""Quantised models on CUDA devices: blocks in few launches, tokens by replaying a graph."""

from tesseral.llm.fused.decoder import FusedDecoder
from tesseral.llm.fused.graph import DecodeGraph

__all__ = ["DecodeGraph", "FusedDecoder"]
