"""Models, and tokens that they are fed in chunks, on one device or by every rank."""

import torch

from support.codec import attach_codecs
from support.models import tiny_gemma3, tiny_gpt_oss, tiny_llama, tiny_qwen3, token_ids

LENGTHS = (40, 23, 1, 3, 1, 1, 2)
"""Chunks of a prompt, then tokens: one at a time, and some as a draft would bring."""

TOKENS = token_ids(2, sum(LENGTHS))
ORDER = torch.tensor([1, 0])

MODELS = {
    "plain": lambda: tiny_llama("tesseral"),
    "normed": lambda: tiny_qwen3("tesseral"),
    "windows": lambda: tiny_gemma3("tesseral", num_hidden_layers=3),
    "sinks": lambda: tiny_gpt_oss("tesseral"),
    "codes": lambda: attach_codecs(tiny_llama("tesseral"), 8, 4).double(),
}


def padding():
    """Return a mask that hides the first tokens of the first sequence."""
    seen = torch.ones_like(TOKENS)
    seen[0, :13] = 0
    return seen


def fed(model, cache, tokens=TOKENS, lengths=LENGTHS, *, seen=None):
    """Return the logits of all tokens, fed in chunks of ``lengths``."""
    chunks, start = [], 0
    for length in lengths:
        end = start + length
        mask = None if seen is None else seen[:, :end]
        call = model(tokens[:, start:end], attention_mask=mask, past_key_values=cache)
        chunks.append(call.logits)
        start = end
    return torch.cat(chunks, dim=1)
