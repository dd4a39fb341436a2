"""How well a model predicts a text, with its cache quantised as in generation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, nll_loss
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral._errors import ParameterError
from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.cache_argument import CACHE
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
    ParameterError
        If a length or number is too small.
    """
    _check_count("perplexity", max_sequences)
    length = clip_length(model, sequence_length)
    sequences = consecutive(tokenize(model, tokenizer, text), length)[:max_sequences]
    total = 0.0
    for batch in _batches(sequences, report):
        for tokens, logits in zip(batch, _logits(model, batch), strict=True):
            total += _loss(_log_probabilities(logits), tokens)
    return exp(total / sequences[:, 1:].numel())


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How close a model's predictions are to those of the model it was made from.

    Attributes
    ----------
    n_tokens : int
        Tokens that were predicted.
    perplexity, reference_perplexity : float
        Of the model and of the reference, on the same tokens.
    top1 : float
        Share of tokens for which both hold the same token the likeliest.
    kl_divergence : float
        Mean over tokens of the Kullback-Leibler divergence of the model's distribution of
        the next token from the reference's, in nats.
    """

    n_tokens: int
    perplexity: float
    reference_perplexity: float
    top1: float
    kl_divergence: float

    @property
    def ratio(self) -> float:
        """Perplexity of the model over that of the reference."""
        return self.perplexity / self.reference_perplexity


@torch.inference_mode()
def agreement(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: Tokenizer,
    text: str,
    sequence_length: int = 1024,
    *,
    max_sequences: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Compare a model with the one it was made from, token by token.

    Each model uses the cache it generates with, as in :func:`perplexity`.

    Parameters
    ----------
    model, reference
        Two models that share ``tokenizer``.
    tokenizer, text, max_sequences, report
        As for :func:`perplexity`.
    sequence_length : int
        Tokens in a sequence, clipped to what both models allow.

    Raises
    ------
    ParameterError
        If the models have vocabularies of different sizes, or a length or number is too
        small.
    DataError
        If the text is shorter than one sequence.
    """
    _check_count("agreement", max_sequences)
    sizes = [m.get_input_embeddings().num_embeddings for m in (model, reference)]
    if sizes[0] != sizes[1]:
        raise ParameterError(
            f"agreement: the model's vocabulary has {sizes[0]} entries and the reference's "
            f"{sizes[1]}; give the model that it was made from."
        )
    length = min(clip_length(m, sequence_length) for m in (model, reference))
    sequences = consecutive(tokenize(model, tokenizer, text), length)[:max_sequences]
    loss = reference_loss = divergence = 0.0
    same = 0
    for batch in _batches(sequences, report):
        pairs = zip(batch, _logits(model, batch), _logits(reference, batch), strict=True)
        # one sequence at a time: a few more arrays of this size would not fit in memory
        for tokens, logits, reference_logits in pairs:
            ours = _log_probabilities(logits)
            theirs = _log_probabilities(reference_logits).to(ours.device)
            loss += _loss(ours, tokens)
            reference_loss += _loss(theirs, tokens)
            divergence += float(kl_div(ours, theirs, reduction="sum", log_target=True))
            same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    n_tokens = sequences[:, 1:].numel()
    return Agreement(
        n_tokens=n_tokens,
        perplexity=exp(loss / n_tokens),
        reference_perplexity=exp(reference_loss / n_tokens),
        top1=same / n_tokens,
        kl_divergence=divergence / n_tokens,
    )


def new_cache(model: PreTrainedModel) -> QuantizedKVCache | None:
    """Return an empty quantised cache for a quantised model, ``None`` for another."""
    return QuantizedKVCache(model) if getattr(model, "is_quantized", False) else None


def _check_count(where: str, max_sequences: int | None) -> None:
    if max_sequences is not None and max_sequences < 1:
        raise ParameterError(f"{where}: max_sequences must be at least 1, got {max_sequences}.")


def _batches(sequences: Tensor, report: Callable[[int, int], None] | None) -> Iterator[Tensor]:
    """Yield as many sequences at a time as run well, and report when each batch is done."""
    done = 0
    for batch in sequences.split(max(1, _TOKENS_AT_ONCE // sequences.shape[1])):
        yield batch
        done += len(batch)
        if report is not None:
            report(done, len(sequences))


def _logits(model: PreTrainedModel, batch: Tensor) -> Tensor:
    cache = new_cache(model)
    logits: Tensor = model(
        batch.to(model.device), **{CACHE: cache}, use_cache=cache is not None
    ).logits
    return logits


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return the predictions of all tokens of a sequence but the first, in float32."""
    return log_softmax(logits[:-1].float(), dim=-1)


def _loss(log_probabilities: Tensor, tokens: Tensor) -> float:
    targets = tokens[1:].to(log_probabilities.device)
    return float(nll_loss(log_probabilities, targets, reduction="sum"))
