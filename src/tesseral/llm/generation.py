"""Continuing a prompt, with the quantised cache where the model has one."""

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.generation.streamers import BaseStreamer

from tesseral._errors import DataError, ParameterError
from tesseral.llm.cache_argument import CACHE
from tesseral.llm.cooperative import CooperativeCache, MemoryPlan
from tesseral.llm.evaluate import new_cache
from tesseral.llm.fused.generate import continue_greedily
from tesseral.llm.fused.support import supports
from tesseral.llm.text import tokenize
from tesseral.quantization.config import LARGEST_SEED


def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    streamer: BaseStreamer | None = None,
    plan: MemoryPlan | None = None,
    cache: Callable[[int], Cache] | None = None,
) -> str:
    """Return the continuation of a prompt.

    Parameters
    ----------
    model, tokenizer
        As :func:`~tesseral.llm.load` returns them.
    prompt : str
        At least one token; with the new ones at most the model's maximum.
    max_new_tokens : int
        Tokens to generate, fewer if the text ends.
    temperature : float
        0 takes the likeliest token; above, tokens are drawn from the distribution at that
        temperature.
    seed : int
        Fixes what is drawn.
    streamer : transformers streamer, optional
        Receives tokens as they come.
    plan : MemoryPlan, optional
        Where keys and values lie, of :func:`plan_memory` for this model; the prompt is then read
        in chunks. By default they are all on the model's device.

    cache : callable, optional
        Makes what keeps keys and values of so many tokens, in place of ``plan``; on several ranks
        that all call this, ``partial(SequenceCache, model)``.

    Raises
    ------
    DataError
        If the prompt is empty or too long, for the model or for the plan.
    CheckpointError
        If the tokenizer knows more tokens than the model.
    ParameterError
        If an argument is out of range.
    """
    if not 0 <= temperature < inf or max_new_tokens < 1:
        raise ParameterError(
            f"generate: temperature must be at least 0 and finite and max_new_tokens at least 1, "
            f"got {temperature} and {max_new_tokens}."
        )
    if plan is not None and cache is not None:
        raise ParameterError("generate: give plan or cache, not both.")
    if not 0 <= seed <= LARGEST_SEED:
        raise ParameterError(f"generate: seed must be 0 to {LARGEST_SEED}, got {seed}.")
    prompt_tokens = tokenize(model, tokenizer, prompt)[None].to(model.device)
    length, limit = prompt_tokens.shape[1], model.config.get_text_config().max_position_embeddings
    if not 0 < length <= limit - max_new_tokens:
        raise DataError(
            f"generate: a prompt of {length} tokens and {max_new_tokens} new ones do not fit; "
            f"the prompt needs at least one token and both together at most {limit}."
        )
    if plan is not None and length + max_new_tokens > plan.context:
        raise DataError(
            f"generate: a prompt of {length} tokens and {max_new_tokens} new ones do not fit a "
            f"plan for {plan.context}; plan for a longer context."
        )
    rope = getattr(model.config, "rope_parameters", None) or {}
    chosen = plan is not None or cache is not None
    if chosen and rope.get("rope_type") == "longrope":
        # transformers drops the cache where such a model passes its original length
        raise DataError(
            f"generate: {type(model).__name__} with longrope angles does not keep a planned cache; "
            "generate without a plan."
        )
    greedy = not temperature and streamer is None and not chosen
    if greedy and prompt_tokens.is_cuda and supports(model).ok:
        ends = model.generation_config.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
        tokens = continue_greedily(model, prompt_tokens, max_new_tokens, ends)
        return str(tokenizer.decode(tokens[0, length:], skip_special_tokens=True))
    drawn = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    if plan is not None:
        kept: Any = CooperativeCache(model, plan)
    else:
        kept = new_cache(model) if cache is None else cache(length + max_new_tokens)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        tokens = model.generate(
            input_ids=prompt_tokens,
            attention_mask=torch.ones_like(prompt_tokens),
            prefill_chunk_size=getattr(kept, "chunk", None) if plan is None else plan.chunk,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            streamer=streamer,
            **{CACHE: kept},
            **drawn,
        )
    text: str = tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
    return text
