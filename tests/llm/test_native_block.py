"""A block that takes a token in two calls gives what it gives module by module."""

import copy

import pytest
import torch

from support.native_llm import MODELS, given, kernels_of, logits, make_model
from tesseral._errors import DtypeError, ShapeError
from tesseral.core.decoder_block import DecoderBlock


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_in_bfloat16_the_logits_are_the_same_to_the_bit(kind, batch):
    model = make_model(kind)
    found = logits(model, *given(batch))
    assert all(kernels_of(model))
    for layer in model.model.layers:  # who watches a module sees it called
        layer.mlp.register_forward_hook(lambda *_: None)
    assert torch.equal(found, logits(model, *given(batch)))


def test_in_float32_they_differ_by_roundings():
    model = make_model(dtype=torch.float32)
    found = logits(model, *given(2))
    assert all(kernels_of(model))
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: None)
    expected = logits(model, *given(2))
    assert (found - expected).abs().median() < 1e-3 * expected.std()


def test_padding_is_not_seen():
    model, (prompt, tokens) = make_model(), given(2)
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    found = logits(model, prompt, tokens, attention_mask=mask)
    assert all(kernels_of(model))
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: None)
    assert torch.equal(found, logits(model, prompt, tokens, attention_mask=mask))


def test_moved_weights_are_noticed_and_copies_are_whole():
    model = make_model()
    found = logits(model, *given(1))
    twin = copy.deepcopy(model)
    assert kernels_of(twin) == [None, None]
    assert torch.equal(logits(twin, *given(1)), found)
    for layer in model.model.layers:
        down = layer.mlp.down_proj
        down.weight_scale = 2 * down.weight_scale
    assert not torch.equal(logits(model, *given(1)), found)


@pytest.mark.parametrize("changes", [{"hidden_act": "gelu"}, {"head_dim": 24}], ids=str)
def test_other_blocks_go_their_own_way(changes):
    model = make_model(**changes)
    assert logits(model, *given(1)).isfinite().all()
    assert kernels_of(model) == [None, None]


def test_parts_that_do_not_fit_are_named():
    model = make_model()
    logits(model, *given(1))
    norms, layers, factor, key, value = kernels_of(model)[0]._kept
    with pytest.raises(DtypeError, match="float16"):
        DecoderBlock("float16", 32, norms, layers, factor, key, value)
    with pytest.raises(ShapeError, match="do not make a block"):
        DecoderBlock("bfloat16", 32, norms, layers[::-1], factor, key, value)
    block, x = kernels_of(model)[0], torch.zeros(1, 1, 96, dtype=torch.bfloat16)
    with pytest.raises(ShapeError, match="attended must be"):
        block.after(x, x, x.clone())
    with pytest.raises(DtypeError, match="out must be bfloat16"):
        block.after(torch.zeros(1, 4, 1, 32, dtype=torch.bfloat16), x, x.float())


def test_long_prompts_are_the_same_in_pieces(monkeypatch):
    model, (prompt, tokens) = make_model(), given(3)
    whole = logits(model, prompt, tokens)
    monkeypatch.setattr("tesseral.llm.native_modules._TOKENS", 5)
    assert torch.equal(logits(model, prompt, tokens), whole)
