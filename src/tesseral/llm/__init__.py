"""Language models from transformers: quantise, load, evaluate, generate.

Importing this room registers our attention, its mask and our quantised format with
transformers, so that ``AutoModelForCausalLM.from_pretrained`` reads a quantised checkpoint.
"""

from tesseral.llm.attention_interface import register
from tesseral.llm.batching import continuous_batching, generate_batch
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.cooperative import CooperativeCache, MemoryPlan, SequenceCache, plan_memory
from tesseral.llm.evaluate import perplexity
from tesseral.llm.generation import generate
from tesseral.llm.loading import load
from tesseral.llm.pipeline import quantize
from tesseral.llm.quantizer import TesseralConfig, TesseralQuantizer
from tesseral.llm.simulation import simulated
from tesseral.llm.tensor_parallel import load_parallel, overlap_sums, tensor_parallel

register()

__all__ = [
    "CooperativeCache",
    "MemoryPlan",
    "QuantizedKVCache",
    "SequenceCache",
    "TesseralConfig",
    "TesseralQuantizer",
    "continuous_batching",
    "generate",
    "generate_batch",
    "load",
    "load_parallel",
    "overlap_sums",
    "perplexity",
    "plan_memory",
    "quantize",
    "simulated",
    "tensor_parallel",
]
