"""Continuing prompts greedily on a CUDA device, some tokens between two looks at them."""

from collections.abc import Collection

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tesseral.llm.fused.decoder import FusedDecoder
from tesseral.llm.fused.graph import DecodeGraph

BETWEEN = 16
"""Tokens that are generated before it is looked whether a text has ended."""


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel, prompt: Tensor, count: int, ends: Collection[int]
) -> Tensor:
    """Return a prompt (1, length) and the likeliest tokens behind it, up to the first that ends it.

    Parameters
    ----------
    model : transformers model
        Of a kind that :func:`~tesseral.llm.fused.support.supports`.
    prompt : int64 tensor of shape (1, length)
    count : int
        New tokens at most.
    ends : collection of int
        Tokens that end a text.
    """
    decoder, length = FusedDecoder(model), prompt.shape[1]
    cache = decoder.new_cache(1, length + count)
    logits = decoder.prefill(prompt, cache)
    graph = DecodeGraph(decoder, cache)
    graph.start(prompt, logits)
    done = 1
    while True:
        new = graph.history[0, length : length + done].tolist()
        ended = next((i + 1 for i, token in enumerate(new) if token in ends), None)
        if ended is not None or done == count:
            return graph.history[:, : length + (ended or count)].clone()
        more = min(BETWEEN, count - done)
        graph.advance(more)
        done += more
