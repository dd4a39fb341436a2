"""Perplexity is that of the text, through the cache that generation uses."""

from math import exp

import pytest
import torch
from transformers import DynamicCache

from support.checkpoints import TEXT, tokenizer
from support.models import tiny_llama, token_ids
from support.quantised import freeze, simulate, tiny
from tesseral._errors import CheckpointError, DataError, ParameterError
from tesseral.llm import QuantizedKVCache, evaluate, perplexity
from tesseral.llm.evaluate import new_cache
from tesseral.llm.quantizer import mark_quantized
from tesseral.quantization import QuantizationConfig

BITS = {"W4A4KV4": (4, 4, 4), "W16A16KV4": (16, 16, 4), "W4A4KV16": (4, 4, 16)}


def quantised(bits="W4A4KV4", name="llama", dtype=torch.float32):
    widths = dict(zip(("weight_bits", "activation_bits", "kv_bits"), BITS[bits], strict=True))
    model, config = tiny(name, dtype), QuantizationConfig(**widths)
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    return model


@torch.no_grad()
def by_hand(model, text, length, count=None):
    """Sum log-probabilities token by token, each from a pass over its own prefix."""
    tokens = torch.tensor(tokenizer()(text).input_ids)
    sequences = tokens[: len(tokens) // length * length].reshape(-1, length)[:count]
    losses = []
    for sequence in sequences:
        for end in range(1, length):
            logits = model(sequence[None, :end]).logits[0, -1].double()
            losses.append(float(logits.logsumexp(-1) - logits[sequence[end]]))
    return exp(sum(losses) / len(losses))


def test_it_is_what_is_computed_by_hand():
    model = tiny_llama("tesseral")
    got = perplexity(model, tokenizer(), TEXT[:50], 12)
    assert got == pytest.approx(by_hand(model, TEXT[:50], 12), rel=1e-5)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    model = tiny_llama("tesseral")
    model.lm_head.weight.data.zero_()
    assert perplexity(model, tokenizer(), TEXT, 100) == pytest.approx(61, rel=1e-5)


def test_it_does_not_depend_on_how_many_sequences_run_at_once(monkeypatch):
    model = quantised()
    together = perplexity(model, tokenizer(), TEXT, 20)
    monkeypatch.setattr(evaluate, "_TOKENS_AT_ONCE", 1)
    assert perplexity(model, tokenizer(), TEXT, 20) == pytest.approx(together, rel=1e-3)


def test_it_stops_after_as_many_sequences_as_asked_and_reports_each_batch(monkeypatch):
    model, reports = tiny_llama("tesseral"), []
    monkeypatch.setattr(evaluate, "_TOKENS_AT_ONCE", 25)
    options = {"max_sequences": 5, "report": lambda *done: reports.append(done)}
    got = perplexity(model, tokenizer(), TEXT, 12, **options)
    assert got == pytest.approx(perplexity(model, tokenizer(), TEXT[:60], 12), rel=1e-6)
    assert reports == [(2, 5), (4, 5), (5, 5)]


def test_the_length_is_clipped_to_the_models_positions():
    model = tiny_llama("tesseral")
    clipped = perplexity(model, tokenizer(), TEXT, 100_000)
    assert clipped == perplexity(model, tokenizer(), TEXT, 128)


def test_keys_and_values_go_through_the_quantised_cache(monkeypatch):
    filled = []

    class Watched(QuantizedKVCache):
        def __init__(self, model):
            super().__init__(model)
            filled.append(self)

    monkeypatch.setattr(evaluate, "QuantizedKVCache", Watched)
    perplexity(quantised(), tokenizer(), TEXT[:40], 20)
    assert [cache.get_seq_length() for cache in filled] == [20]


def test_the_widths_of_the_cache_are_counted():
    exact = perplexity(tiny("llama"), tokenizer(), TEXT, 64)
    assert perplexity(quantised("W16A16KV4"), tokenizer(), TEXT, 64) != pytest.approx(exact, 1e-3)


def test_a_model_in_full_precision_has_no_quantised_cache():
    assert new_cache(tiny_llama()) is None
    assert isinstance(new_cache(quantised()), QuantizedKVCache)


@torch.no_grad()
def logits_through(model, ids, cache, plan):
    options = {"use_cache": False} if cache is None else {"past_key_values": cache}
    return torch.cat([model(part, **options).logits for part in ids.split(plan, dim=1)], dim=1)


@pytest.mark.parametrize("plan", [[12], [5, 4, 3], [9, 1, 1, 1]], ids=str)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_logits_depend_neither_on_the_cache_nor_on_chunks(name, bits, plan):
    # in float64 no code is on the edge to the next
    model, ids = quantised(bits, name, torch.float64), token_ids(2, 12)
    expected = logits_through(model, ids, None, [12])
    for cache in (QuantizedKVCache(model), DynamicCache(config=model.config)):
        got = logits_through(model, ids, cache, plan)
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("count", [0, -1])
def test_no_sequences_are_refused(count):
    with pytest.raises(ParameterError, match=f"max_sequences must be at least 1, got {count}"):
        perplexity(tiny_llama(), tokenizer(), TEXT, 20, max_sequences=count)


def test_a_text_shorter_than_a_sequence_is_refused():
    with pytest.raises(DataError, match="has 19 tokens, fewer than one sequence of 20"):
        perplexity(tiny_llama(), tokenizer(), TEXT[:19], 20)


def test_a_sequence_that_predicts_nothing_is_refused():
    with pytest.raises(ParameterError, match="sequence_length must be at least 2, got 1"):
        perplexity(tiny_llama(), tokenizer(), TEXT, 1)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="they do not belong together"):
        perplexity(tiny_llama(), tokenizer(70), "123456789", 2)
