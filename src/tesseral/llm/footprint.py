"""How much room a model takes: on disk, in memory, and for every token of its cache."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from tesseral.llm.cache_argument import CACHE
from tesseral.llm.evaluate import new_cache
from tesseral.llm.layouts import blocks_of
from tesseral.llm.text import clip_length

_CACHED_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Sizes of a model.

    Attributes
    ----------
    disk_bytes : int
        Of its weight files.
    memory_bytes : int
        Of its parameters and buffers as loaded; shared ones count once.
    block_bytes : int
        Of those in the decoder blocks: what quantisation shrinks. Embeddings and output
        layer are the rest.
    cache_bytes_per_token : float
        Keys and values of all layers for one token of one sequence, as generation keeps them.
    """

    disk_bytes: int
    memory_bytes: int
    block_bytes: int
    cache_bytes_per_token: float


def footprint(path: str | Path, model: PreTrainedModel) -> Footprint:
    """Measure a model and the directory it was loaded from."""
    return Footprint(
        disk_bytes=disk_bytes(path),
        memory_bytes=held_bytes(model),
        block_bytes=held_bytes(blocks_of(model)),
        cache_bytes_per_token=_cache_bytes(model),
    )


def disk_bytes(path: str | Path) -> int:
    """Return the size of the weight files in a model directory."""
    return sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))


def held_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; shared ones count once."""
    return sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))


@torch.inference_mode()
def _cache_bytes(model: PreTrainedModel) -> float:
    length = clip_length(model, _CACHED_TOKENS)
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    cache = new_cache(model)
    if cache is not None:
        model(tokens, **{CACHE: cache}, use_cache=True)
        return cache.nbytes / length
    dense = DynamicCache()
    model(tokens, **{CACHE: dense}, use_cache=True)
    total: int = sum(layer.keys.nbytes + layer.values.nbytes for layer in dense.layers)
    return total / length
