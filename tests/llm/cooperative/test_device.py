"""The cooperative cache on a CUDA device: streams, pinned memory, and the CPU beside."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tesseral.llm import CooperativeCache, plan_memory
from tesseral.llm.cooperative import continue_in_turns
from tesseral.llm.cooperative.link import pinned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTH, CHUNK, STEPS = 3072, 768, 6


@pytest.fixture(scope="module")
def models():
    """The same Llama in bfloat16 and in float32, whose heads are as wide as in large models."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=512,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=4096,
        initializer_range=0.06,
        attn_implementation="tesseral",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exact = LlamaForCausalLM(config).to("cuda").eval()
    short = LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    short.load_state_dict(exact.state_dict())
    exact.load_state_dict(short.state_dict())  # of the same rounded weights
    return short, exact


@torch.inference_mode()
def logits(model, cache, batch=1):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 512, (batch, LENGTH + STEPS), generator=generator).cuda()
    pieces = [*tokens[:, :LENGTH].split(CHUNK, 1), *tokens[:, LENGTH:].split(1, 1)]
    return torch.cat([model(x, past_key_values=cache).logits[:, -1:] for x in pieces], 1).double()


def planned(model, host, strip, batch=1, **asked):
    plan = plan_memory(model, 4096, 1 << 40, 1 << 40, batch=batch, **asked)
    return replace(plan, host_layers=host, strip_tokens=strip)


@pytest.mark.parametrize("cooperate", [True, False], ids=["cpu", "copied"])
@pytest.mark.parametrize("passing", [0, 512, None], ids="passing{}".format)
@pytest.mark.parametrize("batch", [1, 2], ids="batch{}".format)
def test_logits_are_as_near_to_the_truth_as_without_offloading(models, batch, passing, cooperate):
    short, exact = models
    everything = planned(exact, (), 0, batch)
    oracle = logits(exact, CooperativeCache(exact, everything), batch)
    near = logits(short, CooperativeCache(short, planned(short, (), 0, batch)), batch)
    cache = CooperativeCache(
        short, planned(short, (1, 3), 512, batch), cooperate=cooperate, passing=passing
    )
    got = logits(short, cache, batch)
    assert (got - oracle).norm() <= 2 * (near - oracle).norm()
    assert cache.host_bytes == cache.nbytes // 2


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_on_the_host_are_read_by_device_and_cpu(models, bits):
    short, exact = models
    oracle = logits(exact, CooperativeCache(exact, planned(exact, (), 0)))
    near = logits(short, CooperativeCache(short, planned(short, (), 0, kv_bits=bits)))
    for cooperate in (True, False):
        plan = planned(short, (0, 2), 512, kv_bits=bits)
        cache = CooperativeCache(short, plan, cooperate=cooperate, passing=512)
        got = logits(short, cache)
        assert (got - oracle).norm() <= 1.2 * (near - oracle).norm()


def test_equal_calls_give_equal_bits(models):
    short, _ = models
    plan = planned(short, (1, 2, 3), 512)
    first, second = (logits(short, CooperativeCache(short, plan, passing=512)) for _ in range(2))
    assert torch.equal(first, second)


def test_the_device_takes_no_more_than_planned(models):
    short, _ = models
    tight = plan_memory(short, 4096, 1 << 40, chunk=CHUNK)
    few = tight.gpu_needed - 2 * tight.layer_bytes
    plan = plan_memory(short, 4096, few, 1 << 40, chunk=CHUNK)
    assert plan.host_layers
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cache = CooperativeCache(short, plan)
    logits(short, cache)
    assert torch.cuda.max_memory_allocated() - before <= plan.gpu_needed - plan.weight_bytes


def test_pinned_memory_is_of_the_size_asked_for():
    array = pinned((3, 5, 7_000_001), torch.bfloat16)
    assert array.is_pinned()
    assert not array.any()
    copy = torch.full_like(array, 2.0, device="cuda")
    array.copy_(copy, non_blocking=True)
    torch.cuda.synchronize()
    assert (array == 2).all()


def test_groups_in_turns_give_the_tokens_of_one_batch(models):
    _, exact = models  # in float32 no two tokens are equally likely
    tokens = torch.randint(1, 512, (2, 768), generator=torch.Generator().manual_seed(5)).cuda()
    plan = replace(planned(exact, (1, 3), 512, batch=2), chunk=CHUNK)
    one, two = (continue_in_turns(exact, tokens, plan, 8, groups=n) for n in (1, 2))
    assert torch.equal(one, two)
