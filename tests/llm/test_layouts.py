"""The table of architectures: what is found in a block, and what is said when something is not."""

import pytest
import torch

from support.models import tiny_gemma3, tiny_llama, tiny_mixtral, tiny_phi3, tiny_qwen3_moe
from tesseral._errors import UnsupportedModelError
from tesseral.llm.layouts import blocks_of, check_architecture, open_block
from tesseral.quantization.experts import Experts
from tesseral.quantization.placement import INPUT_SITES, ROLES, BlockShape

SITES = {site.name: site for site in INPUT_SITES}


def opened(model, block=0):
    return open_block(blocks_of(model)[block], model.config.model_type)


def test_sizes_are_those_of_the_block():
    sizes = {"hidden": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "intermediate": 48}
    assert opened(tiny_llama())[1] == BlockShape(**sizes)
    assert opened(tiny_phi3())[1] == BlockShape(**sizes)
    assert opened(tiny_gemma3())[1] == BlockShape(**sizes | {"head_dim": 256})


def test_blocks_of_one_model_may_differ():
    model = tiny_qwen3_moe()
    (mixed, first), (plain, second) = opened(model, 0), opened(model, 1)
    assert (first.intermediate, second.intermediate) == (20, 48)
    assert isinstance(blocks_of(model)[0].mlp.experts, Experts)
    assert set(mixed.linears) - set(plain.linears) == {
        f"mlp.experts.{i}.{name}" for i in range(6) for name in ("gate_up_proj", "down_proj")
    }


def test_rows_of_a_shared_layer_play_their_roles_in_order():
    layout, shape = opened(tiny_phi3())
    rows = [layout.rows("self_attn.qkv_proj", role, shape) for role in ROLES]
    assert rows == [slice(0, 32), slice(32, 48), slice(48, 64), None, None, None, None]
    assert layout.rows("mlp.gate_up_proj", "up", shape) == slice(48, 96)


@pytest.mark.parametrize(
    ("build", "owners"),
    [
        (tiny_llama, ("self_attn", "self_attn", "mlp", "mlp")),
        (tiny_phi3, ("self_attn", "self_attn", "mlp", "mlp")),
        (tiny_mixtral, ("self_attn", "self_attn", "mlp.experts", "mlp.experts")),
    ],
)
def test_the_module_around_all_readers_owns_what_they_read(build, owners):
    layout, _ = opened(build())
    assert tuple(layout.owner(site) for site in INPUT_SITES) == owners


def test_layers_of_one_module_read_one_tensor_and_experts_one_each():
    llama, mixtral = opened(tiny_llama())[0], opened(tiny_mixtral())[0]
    assert llama.first_readers(SITES["attention_input"]) == ("self_attn.q_proj",)
    assert llama.readers(SITES["mlp_input"]) == ("mlp.gate_proj", "mlp.up_proj")
    experts = tuple(f"mlp.experts.{i}.down_proj" for i in range(5))
    assert mixtral.first_readers(SITES["mlp_hidden"]) == experts
    assert mixtral.readers(SITES["mlp_hidden"]) == experts


def test_an_architecture_that_is_not_in_the_table_is_told_what_is_looked_for():
    with pytest.raises(
        UnsupportedModelError,
        match=r"'gpt_oss' is not supported; supported are llama, .*, qwen3_moe, whose blocks hold "
        r"some of self_attn, self_attn\.q_proj, .*self_attn\.qkv_proj.*mlp\.experts, mlp\.gate\.",
    ):
        check_architecture("gpt_oss")


def test_a_block_that_lacks_a_module_is_told_which_and_what_else_was_looked_for():
    model = tiny_llama()
    del blocks_of(model)[0].mlp.up_proj
    with pytest.raises(
        UnsupportedModelError,
        match=r"a LlamaDecoderLayer of architecture 'llama' should hold self_attn, .*"
        r"mlp\.down_proj, input_layernorm, post_attention_layernorm; missing are mlp\.up_proj\.$",
    ):
        opened(model)


def test_a_block_that_fits_neither_of_two_layouts_is_told_both():
    model = tiny_qwen3_moe()
    blocks_of(model)[0].mlp = torch.nn.Identity()
    with pytest.raises(
        UnsupportedModelError,
        match=r"missing are mlp\.experts, mlp\.gate, or mlp\.gate_proj, mlp\.up_proj, mlp\.down_p",
    ):
        opened(model)
