"""Text is continued deterministically, within what the model can hold."""

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

from support.checkpoints import tokenizer
from support.models import tiny_llama
from support.quantised import freeze, simulate, tiny
from tesseral._errors import CheckpointError, DataError, ParameterError
from tesseral.llm import QuantizedKVCache, evaluate, generate, plan_memory
from tesseral.llm.quantizer import mark_quantized
from tesseral.quantization import QuantizationConfig

PROMPT = "It was the best"


def quantised():
    model, config = tiny("llama"), QuantizationConfig()
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    return model


@torch.no_grad()
def greedy_by_hand(model, prompt, count):
    tokens = tokenizer()(prompt, return_tensors="pt").input_ids
    for _ in range(count):
        logits = model(tokens, use_cache=False).logits[:, -1]
        tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
    return tokenizer().decode(tokens[0, -count:], skip_special_tokens=True)


@pytest.mark.parametrize("build", [lambda: tiny("llama"), quantised], ids=["full", "quantised"])
def test_without_temperature_the_likeliest_token_is_taken(build):
    model = build()
    text = generate(model, tokenizer(), PROMPT, max_new_tokens=12)
    assert text == greedy_by_hand(model, PROMPT, 12)
    assert generate(model, tokenizer(), PROMPT, max_new_tokens=12, seed=5) == text


def test_the_prompt_is_not_part_of_the_text():
    text = generate(tiny("llama"), tokenizer(), PROMPT, max_new_tokens=7)
    assert 0 < len(text) <= 7


@pytest.mark.parametrize("build", [lambda: tiny("llama"), quantised], ids=["full", "quantised"])
def test_the_seed_fixes_what_is_drawn(build):
    model, options = build(), {"max_new_tokens": 20, "temperature": 1.5}
    texts = [generate(model, tokenizer(), PROMPT, **options, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_low_temperature_draws_the_likeliest():
    model = tiny("llama")
    greedy = generate(model, tokenizer(), PROMPT, max_new_tokens=8)
    assert generate(model, tokenizer(), PROMPT, max_new_tokens=8, temperature=1e-4) == greedy


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    generate(tiny("llama"), tokenizer(), PROMPT, max_new_tokens=3, temperature=1.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_quantised_model_generates_through_its_cache(monkeypatch):
    filled = []

    class Watched(QuantizedKVCache):
        def __init__(self, model):
            super().__init__(model)
            filled.append(self)

    monkeypatch.setattr(evaluate, "QuantizedKVCache", Watched)
    generate(quantised(), tokenizer(), PROMPT, max_new_tokens=6)
    # the last token is written down and never read
    assert [cache.get_seq_length() for cache in filled] == [len(PROMPT) + 5]


def test_a_text_ends_where_the_model_ends_it():
    model = tiny("llama")
    whole = generate(model, tokenizer(), PROMPT, max_new_tokens=12)
    last = whole[3]
    model.generation_config.eos_token_id = tokenizer().convert_tokens_to_ids(last)
    text = generate(model, tokenizer(), PROMPT, max_new_tokens=12)
    assert text == whole[: whole.index(last) + 1]


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_a_streamer_receives_tokens_as_they_come():
    streamer = Collector()
    text = generate(tiny("llama"), tokenizer(), PROMPT, max_new_tokens=6, streamer=streamer)
    received = tokenizer().decode(streamer.tokens, skip_special_tokens=True)
    assert received == PROMPT + text
    assert streamer.ended


def test_prompt_and_text_may_fill_the_model_to_the_last_position():
    model = tiny("llama")
    generate(model, tokenizer(), "a" * 120, max_new_tokens=8)
    with pytest.raises(
        DataError,
        match=r"a prompt of 121 tokens and 8 new ones do not fit; .* together at most 128",
    ):
        generate(model, tokenizer(), "a" * 121, max_new_tokens=8)


def test_an_empty_prompt_is_refused():
    with pytest.raises(DataError, match=r"a prompt of 0 tokens .* needs at least one token"):
        generate(tiny_llama(), tokenizer(), "", max_new_tokens=8)


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"temperature": -0.1}, r"-0\.1 and 64"),
        ({"temperature": float("nan")}, "nan and 64"),
        ({"temperature": float("inf")}, "inf and 64"),
        ({"max_new_tokens": 0}, r"0\.0 and 0"),
    ],
)
def test_values_out_of_range_are_refused(options, given):
    with pytest.raises(ParameterError, match=f"finite and max_new_tokens at least 1, got {given}"):
        generate(tiny_llama(), tokenizer(), PROMPT, **options)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ParameterError, match=f"seed must be 0 to 4294967295, got {seed}"):
        generate(tiny_llama(), tokenizer(), PROMPT, seed=seed)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="they do not belong together"):
        generate(tiny_llama(), tokenizer(70), "page 8")


def test_a_model_that_would_drop_a_planned_cache_is_refused():
    model = tiny_llama("tesseral")
    plan = plan_memory(model, 16, 1 << 40, 1 << 40)
    model.config.rope_parameters = model.config.rope_parameters | {"rope_type": "longrope"}
    with pytest.raises(DataError, match="longrope angles does not keep a planned cache"):
        generate(model, tokenizer(), PROMPT, max_new_tokens=1, plan=plan)
