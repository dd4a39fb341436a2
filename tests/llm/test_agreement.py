"""A model is compared with its original on the same tokens, each through its own cache."""

import numpy as np
import pytest
import torch

from support.checkpoints import TEXT, tokenizer
from support.models import tiny_llama
from support.quantised import freeze, simulate, tiny
from tesseral._errors import DataError, ParameterError
from tesseral.llm import evaluate, perplexity
from tesseral.llm.evaluate import agreement
from tesseral.llm.quantizer import mark_quantized
from tesseral.quantization import QuantizationConfig


def quantised():
    model, config = tiny("llama"), QuantizationConfig()
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    return model


@torch.no_grad()
def log_probabilities(model, tokens):
    logits = model(tokens, use_cache=False).logits[:, :-1].double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_divergence_and_top1_are_what_numpy_says():
    model, reference = quantised(), tiny("llama")
    found = agreement(model, reference, tokenizer(), TEXT[:60], 12)
    tokens = torch.tensor(tokenizer()(TEXT[:60]).input_ids).reshape(5, 12)
    ours, theirs = log_probabilities(model, tokens), log_probabilities(reference, tokens)
    divergence = (np.exp(theirs) * (theirs - ours)).sum(-1).mean()
    assert found.kl_divergence == pytest.approx(divergence, rel=1e-5)
    assert found.top1 == (ours.argmax(-1) == theirs.argmax(-1)).mean()
    assert 0 < found.top1 < 1
    assert found.n_tokens == 55


def test_both_perplexities_are_those_measured_alone():
    model, reference = quantised(), tiny("llama")
    found = agreement(model, reference, tokenizer(), TEXT, 20, max_sequences=7)
    alone = [perplexity(m, tokenizer(), TEXT, 20, max_sequences=7) for m in (model, reference)]
    assert [found.perplexity, found.reference_perplexity] == alone
    assert found.ratio == alone[0] / alone[1]


def test_a_model_agrees_with_itself():
    model = quantised()
    found = agreement(model, model, tokenizer(), TEXT, 20)
    assert (found.ratio, found.top1, found.kl_divergence) == (1.0, 1.0, 0.0)


def test_the_divergence_tells_which_model_is_the_reference():
    # a reference that is sure of one token diverges more from a flat model than back
    sure, flat = tiny_llama("tesseral"), tiny_llama("tesseral")
    flat.lm_head.weight.data.mul_(0.1)
    there = agreement(flat, sure, tokenizer(), TEXT, 20).kl_divergence
    back = agreement(sure, flat, tokenizer(), TEXT, 20).kl_divergence
    assert there < back


def test_the_length_is_clipped_to_what_both_models_allow():
    model, reference = tiny_llama("tesseral"), tiny_llama("tesseral", max_position_embeddings=50)
    for pair in ((model, reference), (reference, model)):
        assert agreement(*pair, tokenizer(), TEXT, 1000, max_sequences=2).n_tokens == 2 * 49


def test_every_batch_is_reported(monkeypatch):
    model, reports = tiny_llama("tesseral"), []
    monkeypatch.setattr(evaluate, "_TOKENS_AT_ONCE", 40)
    agreement(model, model, tokenizer(), TEXT[:60], 20, report=lambda *n: reports.append(n))
    assert reports == [(2, 3), (3, 3)]


def test_models_of_different_vocabularies_are_refused():
    model, reference = tiny_llama(), tiny_llama(vocab_size=70)
    with pytest.raises(ParameterError, match="vocabulary has 61 entries and the reference's 70"):
        agreement(model, reference, tokenizer(), TEXT)


def test_no_sequences_are_refused():
    model = tiny_llama()
    with pytest.raises(ParameterError, match="agreement: max_sequences must be at least 1, got 0"):
        agreement(model, model, tokenizer(), TEXT, 20, max_sequences=0)


def test_a_text_shorter_than_a_sequence_is_refused():
    model = tiny_llama()
    with pytest.raises(DataError, match="has 19 tokens, fewer than one sequence of 20"):
        agreement(model, model, tokenizer(), TEXT[:19], 20)
