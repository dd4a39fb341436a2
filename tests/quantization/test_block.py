"""Simulated and stored parts take the place of a block's linear layers, and give it back."""

from contextlib import suppress

import pytest
import torch

from support.models import token_ids
from support.quantised import freeze, installed, logits_of, simulate, tiny
from tesseral._errors import UnsupportedModelError
from tesseral.llm.layouts import blocks_of, open_block
from tesseral.quantization.block import original_linears, replace_with_quantized, start_of_scale
from tesseral.quantization.config import TRANSFORMS, QuantizationConfig
from tesseral.quantization.freeze import frozen_state
from tesseral.quantization.linear import QuantizedLinear
from tesseral.quantization.placement import CODEC, ROLES
from tesseral.quantization.shared_input import SharedInput


def test_a_missing_linear_layer_is_named():
    (block, _) = blocks_of(tiny("llama"))
    layout, _ = open_block(block, "llama")
    del block.mlp.up_proj
    with pytest.raises(
        UnsupportedModelError,
        match=r"LlamaDecoderLayer should hold a linear layer 'mlp\.up_proj' as up, found nothing; "
        r"looked for self_attn\.q_proj, .*, mlp\.down_proj\.",
    ):
        original_linears(block, layout)


def test_a_module_that_is_not_linear_is_named():
    (block, _) = blocks_of(tiny("llama"))
    layout, _ = open_block(block, "llama")
    block.self_attn.o_proj = torch.nn.Identity()
    with pytest.raises(UnsupportedModelError, match="as output, found Identity"):
        original_linears(block, layout)


def test_the_scale_starts_from_the_maxima_of_weights_and_inputs():
    weights = [torch.tensor([[1.0, -4.0], [0.5, 2.0]]), torch.tensor([[-3.0, 0.1]])]
    scale = start_of_scale(torch.tensor([2.0, 8.0]), weights).exp()
    assert torch.allclose(scale, torch.tensor([3**0.7 / 2**0.3, 4**0.7 / 8**0.3]))


def test_the_scale_of_a_channel_that_is_never_used_is_finite():
    assert start_of_scale(torch.zeros(3), [torch.zeros(2, 3)]).isfinite().all()


def test_a_block_is_put_back_when_something_fails_inside():
    model = tiny("llama", num_hidden_layers=1)
    (block,) = blocks_of(model)
    before, names = logits_of(model, token_ids(1, 5)), [n for n, _ in block.named_modules()]
    (parts,) = simulate(model, QuantizationConfig())
    with suppress(KeyboardInterrupt), parts.installed():
        assert hasattr(block.self_attn, CODEC)
        assert not isinstance(block.mlp.up_proj, torch.nn.Linear)
        raise KeyboardInterrupt
    assert sorted(n for n, _ in block.named_modules()) == sorted(names)
    assert torch.equal(logits_of(model, token_ids(1, 5)), before)


def test_every_parameter_is_in_one_group_with_its_rate():
    (parts,) = simulate(tiny("llama", num_hidden_layers=1), QuantizationConfig())
    transforms, clips = parts.parameter_groups()
    config = parts.config
    assert (transforms["lr"], clips["lr"]) == (config.learning_rate, config.clip_learning_rate)
    grouped = [id(p) for group in (transforms, clips) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in parts.parameters())
    # inputs, keys and values have one clip each; weights one a row
    assert len(clips["params"]) == 4 + 2 + len(ROLES)
    assert all(p.shape[-1] == 2 for p in clips["params"])


@pytest.mark.parametrize("transform", ["none", "hadamard"])
def test_without_learning_there_are_no_parameters(transform):
    config = QuantizationConfig(transform=transform)
    (parts,) = simulate(tiny("llama", num_hidden_layers=1), config)
    assert list(parts.parameters()) == []


@pytest.mark.parametrize("bits", [(4, 4, 4), (16, 16, 16), (2, 8, 3)], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "odd", "phi3", "olmo2", "mixtral"])
def test_the_frozen_state_fills_the_stored_parts_exactly(name, transform, bits):
    widths = dict(zip(("weight_bits", "activation_bits", "kv_bits"), bits, strict=True))
    config = QuantizationConfig(transform=transform, **widths)
    model = tiny(name, num_hidden_layers=1)
    (block,), (parts,) = blocks_of(model), simulate(model, config)
    state = frozen_state(parts, torch.float32)
    layout, shape = open_block(block, model.config.model_type)
    replace_with_quantized(block, layout, shape, config)
    block.load_state_dict(state)  # strict: neither missing nor left over
    assert {t.dtype for t in state.values()} <= {torch.float32, torch.uint8}
    assert {n: (t.dtype, t.shape) for n, t in block.state_dict().items()} == {
        n: (t.dtype, t.shape) for n, t in state.items()
    }
    replaced = [m for m in block.modules() if isinstance(m, QuantizedLinear)]
    assert len(replaced) == len(layout.linears)
    assert not any(isinstance(m, torch.nn.Linear) for m in block.modules())


def test_what_is_not_quantised_stays():
    model = tiny("qwen3", num_hidden_layers=1)
    (block,), (parts,) = blocks_of(model), simulate(model, QuantizationConfig())
    state = frozen_state(parts, torch.float32)
    for name in ("self_attn.q_norm.weight", "self_attn.k_norm.weight"):
        assert torch.equal(state[name], block.get_parameter(name))


def test_freezing_leaves_the_original_weights_alone():
    model = tiny("llama", num_hidden_layers=1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    (parts,) = simulate(model, QuantizationConfig())
    frozen_state(parts, torch.float32)
    after = model.state_dict()
    assert all(
        torch.equal(after[name], t) and after[name].dtype == t.dtype for name, t in before.items()
    )


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_inputs_are_let_go_when_their_last_reader_has_them(name):
    model, config = tiny(name, num_hidden_layers=1), QuantizationConfig()
    (block,), parts = blocks_of(model), simulate(model, config)
    with installed(parts):
        logits_of(model, token_ids(1, 5))
    freeze(model, config, parts)
    logits_of(model, token_ids(1, 5))
    inputs = [m for m in block.modules() if isinstance(m, SharedInput)]
    assert len(inputs) == len(parts[0].inputs)
    assert all(site._now.x is None for site in [*inputs, *parts[0].inputs.values()])
