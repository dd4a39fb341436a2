"""Groups of sequences that take turns give what they give one after the other."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from support.models import tiny_llama, token_ids
from tesseral._errors import ParameterError
from tesseral.llm import CooperativeCache, plan_memory
from tesseral.llm.cooperative import continue_in_turns
from tesseral.llm.cooperative.link import Link


def planned(model, batch):
    plan = plan_memory(model, 64, 1 << 40, 1 << 40, batch=batch, chunk=16)
    return replace(plan, host_layers=(0, 1), strip_tokens=10)


@pytest.mark.parametrize("remote", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_tokens_are_those_of_plain_generation(groups, remote):
    model, tokens = tiny_llama("tesseral"), token_ids(4, 40)
    expected = model.generate(tokens, max_new_tokens=12, do_sample=False)
    got = continue_in_turns(
        model,
        tokens,
        planned(model, 4),
        12,
        groups=groups,
        link=Link(torch.device("cpu"), remote=remote),
    )
    assert torch.equal(got, expected)


def test_groups_that_do_not_divide_the_batch_are_refused():
    model = tiny_llama("tesseral")
    with pytest.raises(ParameterError, match="2 groups must divide 3 sequences"):
        continue_in_turns(model, token_ids(3, 5), planned(model, 3), 4)
    with pytest.raises(ParameterError, match="it is for 4"):
        continue_in_turns(model, token_ids(2, 5), planned(model, 4), 4)


@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("used_in", [torch.inference_mode, torch.no_grad])
def test_a_thread_of_its_own_writes_to_memory_made_in_any_mode(made_in, used_in):
    model, tokens = tiny_llama("tesseral"), token_ids(2, 21)
    with torch.no_grad():
        expected = model(tokens).logits[:, -1]
    with ThreadPoolExecutor(1) as cpu:
        with made_in():
            link = Link(torch.device("cpu"), remote=True)
            cache = CooperativeCache(model, planned(model, 2), link=link, cpu=cpu, passing=7)
        with used_in():
            model(tokens[:, :-1], past_key_values=cache)
            got = model(tokens[:, -1:], past_key_values=cache).logits[:, -1]
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)
