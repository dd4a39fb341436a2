"""How well a model predicts a text, with its cache quantised as in generation."""

from collections.abc import Callable
from math import exp

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral._errors import ParameterError
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.text import clip_length, consecutive, tokenize

_TOKENS_AT_ONCE = 4096


@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    text: str,
    sequence_length: int = 1024,
    *,
    max_sequences: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> float:
    """Return the perplexity of a text, cut into sequences that follow one another.

    Keys and values go through the model's quantised cache, so that what generation loses
    there is counted.

    Parameters
    ----------
    model, tokenizer
        As :func:`~tesseral.llm.load` returns them.
    text : str
        At least one sequence long.
    sequence_length : int
        Tokens in a sequence, clipped to the model's maximum; the first predicts only.
    max_sequences : int, optional
        Stop after this many sequences.
    report : callable, optional
        Called with the number of sequences done and of all.

    Returns
    -------
    float
        ``exp`` of the mean negative log-likelihood of a token.

    Raises
    ------
    DataError
        If the text is shorter than one sequence.
    """
    if max_sequences is not None and max_sequences < 1:
        raise ParameterError(f"perplexity: max_sequences must be at least 1, got {max_sequences}.")
    length = clip_length(model, sequence_length)
    sequences = consecutive(tokenize(model, tokenizer, text), length)[:max_sequences]
    total, done = 0.0, 0
    for batch in sequences.to(model.device).split(max(1, _TOKENS_AT_ONCE // length)):
        total += _negative_log_likelihood(model, batch)
        done += len(batch)
        if report is not None:
            report(done, len(sequences))
    return exp(total / (len(sequences) * (length - 1)))


def new_cache(model: PreTrainedModel) -> QuantizedKVCache | None:
    """Return an empty quantised cache for a quantised model, ``None`` for another."""
    return QuantizedKVCache(model) if getattr(model, "is_quantized", False) else None


def _negative_log_likelihood(model: PreTrainedModel, batch: Tensor) -> float:
    cache = new_cache(model)
    logits = model(batch, past_key_values=cache, use_cache=cache is not None).logits
    predictions, targets = logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten()
    return float(torch.nn.functional.cross_entropy(predictions, targets, reduction="sum"))
