"""What enters blocks is what the whole model would give them, though none of them is run."""

import pytest
import torch

from support.models import token_ids
from support.quantised import MODELS
from tesseral.llm.capture import block_arguments, hidden_states
from tesseral.llm.layouts import blocks_of, final_norm_of

TOKENS = token_ids(5, 9)


@torch.no_grad()
def by_hooks(model, tokens):
    """Return the hidden states that enter each block, and its other arguments, in a whole run."""
    calls, handles = [], []
    for block in blocks_of(model):
        hook = lambda _, hidden, keywords: calls.append((hidden[0], keywords))  # noqa: E731
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_the_first_block_gets_what_it_gets_in_a_run(name):
    model = MODELS[name]("tesseral")
    batches = list(hidden_states(model, TOKENS, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), by_hooks(model, TOKENS)[0][0])


@pytest.mark.parametrize("name", MODELS)
def test_blocks_called_with_the_arguments_found_give_the_models_output(name):
    model = MODELS[name]("tesseral")
    found = block_arguments(model, TOKENS[0])
    hidden = torch.cat(list(hidden_states(model, TOKENS, 5)))
    with torch.no_grad():
        for block, arguments in zip(blocks_of(model), found, strict=True):
            hidden = block(hidden, **arguments)
        expected = model.model(TOKENS, use_cache=False).last_hidden_state
        assert torch.equal(final_norm_of(model)(hidden), expected)


def test_a_model_in_half_precision_is_captured_in_single():
    model = MODELS["llama"]("tesseral").to(torch.bfloat16)
    (hidden,) = hidden_states(model, TOKENS, 5)
    assert hidden.dtype == torch.float32
    assert block_arguments(model, TOKENS[0])[0]["position_embeddings"][0].dtype == torch.float32


def test_the_model_runs_as_before_afterwards():
    model = MODELS["llama"]("tesseral")
    with torch.no_grad():
        before = model(TOKENS).logits
        list(hidden_states(model, TOKENS, 2))
        assert torch.equal(model(TOKENS).logits, before)
