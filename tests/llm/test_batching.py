"""Continuous batching gives each request what it would get alone, and ends when it fails."""

import copy
import threading

import numpy as np
import pytest
import torch
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

from support.budget import assert_within_budget
from support.codec import attach_codecs
from support.models import BUILDERS, DECODERS, tiny_gemma2, tiny_llama, tiny_mistral, token_ids
from support.quantised import freeze, simulate, tiny
from tesseral._errors import BackendError, DataError, ParameterError, ShapeError
from tesseral.llm import QuantizedKVCache, continuous_batching, generate_batch
from tesseral.llm.quantizer import mark_quantized
from tesseral.quantization import QuantizationConfig

NEW = 7
LENGTHS = (3, 9, 17, 5, 26)  # of prompts: below, at and above windows and blocks

BLOCK = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"


def settings_of(**changes):
    """Return a config with blocks of 4 tokens, so that requests have several."""
    return ContinuousBatchingConfig(**{BLOCK: 4} | changes)


def prompts_of(lengths=LENGTHS):
    return [token_ids(1, length, seed=length)[0].tolist() for length in lengths]


def batched(model, prompts, **changes):
    outputs = generate_batch(model, prompts, None, settings_of(**changes), max_new_tokens=NEW)
    return [output.generated_tokens for output in outputs.values()]


def alone(model, prompts, new_cache=lambda: None):
    """Return what ``generate`` appends to each prompt by itself."""
    return [
        model.generate(
            torch.tensor([prompt]),
            max_new_tokens=NEW,
            do_sample=False,
            past_key_values=new_cache(),
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


@torch.no_grad()
def log_probabilities(model, output):
    """Return those of the generated tokens, all at once and without a cache."""
    tokens = torch.tensor([output.prompt_ids + output.generated_tokens])
    logits = model(tokens, use_cache=False).logits[0].double()
    chosen = logits[:-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]
    return chosen[-len(output.generated_tokens) :].numpy()


@pytest.mark.parametrize("name", DECODERS)
def test_each_request_gets_what_it_would_get_alone(name):
    model, prompts = DECODERS[name]("tesseral"), prompts_of()
    # so few tokens a pass that prompts come in pieces, some beside tokens of other requests
    settings = settings_of(return_logprobs=True, max_batch_tokens=11)
    outputs = generate_batch(model, prompts, None, settings, max_new_tokens=NEW).values()
    assert [output.generated_tokens for output in outputs] == alone(model, prompts)
    got = np.concatenate([output.logprobs for output in outputs])
    oracle, peer = (
        np.concatenate([log_probabilities(model, output) for output in outputs])
        for model in (DECODERS[name]().double(), DECODERS[name]())
    )
    assert_within_budget(got, oracle, peer, floor=2e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_prompts_are_read_in_one_pass_by_default(name):
    model, prompts = DECODERS[name]("tesseral"), prompts_of()
    assert batched(model, prompts) == alone(model, prompts)


@pytest.mark.parametrize(
    ("name", "bits"),
    [(name, (4, 4)) for name in BUILDERS]
    + [("mistral", bits) for bits in [(8, 2), (16, 4), (4, 16)]],
    ids=str,
)
def test_a_quantised_model_stores_and_reads_codes(name, bits):
    model, prompts = attach_codecs(BUILDERS[name]("tesseral"), *bits), prompts_of((3, 9, 17))
    expected = alone(model, prompts, lambda: QuantizedKVCache(model))
    assert batched(model, prompts, max_batch_tokens=8) == expected


def test_a_model_of_our_format_is_served():
    model, config = tiny("llama"), QuantizationConfig()
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    expected = alone(model, prompts_of(), lambda: QuantizedKVCache(model))
    assert batched(model, prompts_of()) == expected


def test_four_bits_take_less_room():
    sizes = []
    for model in (tiny_llama("tesseral"), attach_codecs(tiny_llama("tesseral"), 4, 4)):
        with continuous_batching(model, None, settings_of(num_blocks=32)) as manager:
            manager.add_request([1, 2, 3], max_new_tokens=1)
            assert manager.get_result(timeout=60).error is None
            cache = manager.batch_processor.cache
            sizes.append(sum(pool.nbytes for pool in cache._pools(0)))
    # 8 numbers of 4 bytes, or 4 bytes of codes and 8 of scales
    assert sizes[1] / sizes[0] == pytest.approx(12 / 32, rel=0.05)


@pytest.mark.parametrize("sharing", [True, False])
def test_requests_that_start_alike_may_share_blocks(sharing):
    model = tiny_llama("tesseral")
    start = prompts_of((21,))[0]
    prompts = [start, [*start, 5], [*start, 6, 7], start[:12], start]
    settings = {"allow_block_sharing": sharing, "max_requests_per_batch": 2}
    assert batched(model, prompts, **settings) == alone(model, prompts)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_cache_that_cannot_hold_all_requests_serves_them_in_turn(name):
    model, prompts = DECODERS[name]("tesseral"), prompts_of()
    shares = 2 if BLOCK == "block_size" and name == "gemma2" else 1  # blocks of groups of layers
    assert batched(model, prompts, num_blocks=10 * shares) == alone(model, prompts)


def test_a_request_does_not_depend_on_its_neighbours():
    model, settings = tiny_gemma2("tesseral"), settings_of(return_logprobs=True)
    prompts = prompts_of((9, 12, 5))
    others = [prompts[0], [t % 60 + 1 for t in prompts[1]], prompts[2]]
    first, second = (
        list(generate_batch(model, p, None, settings, max_new_tokens=NEW).values())
        for p in (prompts, others)
    )
    assert [first[i].logprobs == second[i].logprobs for i in range(3)] == [True, False, True]


def test_sequences_of_one_prompt_follow_one_another():
    model, prompts = tiny_llama("tesseral"), prompts_of((9, 5))
    generation = copy.deepcopy(model.generation_config)
    generation.num_return_sequences = 2
    outputs = generate_batch(model, prompts, generation, settings_of(), max_new_tokens=NEW)
    first, second = alone(model, prompts)
    assert [output.generated_tokens for output in outputs.values()] == [first] * 2 + [second] * 2


def test_a_request_ends_with_the_text():
    model, prompts = tiny_llama("tesseral"), prompts_of((9,))
    (tokens,) = alone(model, prompts)
    generation = GenerationConfig(eos_token_id=tokens[1], max_new_tokens=NEW)
    (output,) = generate_batch(model, prompts, generation).values()
    assert tokens[0] != tokens[1]
    assert output.generated_tokens == tokens[:2]


def test_the_model_and_what_was_passed_stay_as_they_were():
    model, settings = tiny_llama("tesseral"), settings_of()
    threads = threading.active_count()
    before = copy.deepcopy((model.config, model.generation_config, settings))
    generation = GenerationConfig(max_new_tokens=2)
    generate_batch(model, prompts_of((4,)), generation, settings)
    assert (model.config, model.generation_config, settings) == before
    assert generation == GenerationConfig(max_new_tokens=2)
    assert threading.active_count() == threads


def test_requests_come_and_go_while_others_run():
    model, prompts = tiny_llama("tesseral"), prompts_of((9, 5, 12))
    found = {}
    with continuous_batching(model, None, settings_of(), lengths=[40] * 3) as manager:
        manager.add_request(prompts[0], "first", max_new_tokens=NEW, streaming=True)
        manager.add_request(prompts[1], "cancelled", max_new_tokens=20)
        while len(found.get("first", [])) < 3:
            output = manager.get_result(timeout=60)
            found[output.request_id] = output.generated_tokens
        manager.cancel_request("cancelled")
        manager.add_request(prompts[2], "late", max_new_tokens=NEW)
        while len(found.get("late", [])) < NEW or len(found["first"]) < NEW:
            output = manager.get_result(timeout=60)
            found[output.request_id] = output.generated_tokens
    expected = alone(model, prompts)
    assert (found["first"], found["late"]) == (expected[0], expected[2])


def fail(*_, **__):
    raise ZeroDivisionError("in the middle of a pass")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_fails_in_a_pass_is_raised_and_the_thread_ends(monkeypatch):
    model = tiny_llama("tesseral")
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", fail)
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError, match="in the middle of a pass"):
        generate_batch(model, prompts_of((4,)), max_new_tokens=2)
    assert set(threading.enumerate()) <= before


def test_an_exception_ends_the_thread_without_finishing_the_requests():
    model, passes = tiny_llama("tesseral"), []
    model.register_forward_hook(lambda *_: passes.append(1))

    def interrupted():
        with continuous_batching(model, lengths=[103]) as manager:
            manager.add_request([1, 2, 3], max_new_tokens=100)
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert set(threading.enumerate()) <= before
    assert len(passes) < 100


def test_a_model_under_another_attention_is_refused():
    with pytest.raises(ParameterError, match=r"'eager'; call model.set_attn_implementation"):
        generate_batch(tiny_llama(), prompts_of((4,)), max_new_tokens=2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"use_async_batching": True}, "use_async_batching is not supported under"),
        ({"varlen_compile_config": CompileConfig()}, "varlen_compile_config is not supported"),
    ],
)
def test_what_would_record_our_attention_is_refused(option, message):
    with pytest.raises(ParameterError, match=message):
        batched(tiny_llama("tesseral"), prompts_of((4,)), **option)


def test_beams_are_refused():
    generation = GenerationConfig(num_beams=2, max_new_tokens=2)
    with pytest.raises(ParameterError, match=r"num_beams=2 is not supported; use model.generate"):
        generate_batch(tiny_llama("tesseral"), prompts_of((4,)), generation)


@pytest.mark.parametrize("new", [None, 0])
def test_a_length_is_asked_for(new):
    model = tiny_llama("tesseral")
    model.generation_config.max_new_tokens = None
    with pytest.raises(ParameterError, match=f"max_new_tokens must be at least 1, got {new}"):
        generate_batch(model, prompts_of((4,)), max_new_tokens=new)


@pytest.mark.parametrize("length", [0, 122])
def test_a_prompt_that_does_not_fit_is_refused(length):
    prompts = [[1, 2], [1] * length]
    message = (
        f"prompt 1 has {length} tokens; it needs at least one and, with 7 new ones, at most 128"
    )
    with pytest.raises(DataError, match=message):
        batched(tiny_llama("tesseral"), prompts)


def test_no_prompts_give_nothing():
    assert batched(tiny_llama("tesseral"), []) == []


def test_a_window_that_the_config_does_not_tell_is_refused(monkeypatch):
    model = tiny_mistral("tesseral")
    monkeypatch.setattr(model.config, "layer_types", ["full_attention"] * 2, raising=False)
    with pytest.raises(BackendError, match="layer 0 asks for a window of 6 tokens, but the config"):
        batched(model, prompts_of((4,)))


def test_values_of_another_head_dim_than_keys_are_refused():
    query, key, value = (torch.zeros(1, heads, 3, size) for heads, size in [(4, 8), (2, 8), (2, 4)])
    with continuous_batching(tiny_llama("tesseral"), None, settings_of(num_blocks=8)) as manager:
        manager.add_request([1, 2, 3], max_new_tokens=1)
        assert manager.get_result(timeout=60).error is None
        cache = manager.batch_processor.cache
        with pytest.raises(ShapeError, match=r"must be of the model's head_dim=8, got 4"):
            cache.attend(0, query, key, value, {})


def test_the_manager_of_transformers_refuses_our_attention():
    with pytest.raises(ValueError, match="tesseral"):
        tiny_llama("tesseral").generate_batch([[1, 2, 3]], max_new_tokens=1)
