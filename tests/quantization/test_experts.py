"""Experts taken apart compute what the fused ones do, and their use is counted."""

import pytest
import torch
from torch.nn.functional import silu

from support.models import tiny_llama, tiny_mixtral, token_ids
from support.quantised import logits_of
from tesseral._errors import UnsupportedModelError
from tesseral.llm.layouts import blocks_of
from tesseral.quantization.experts import Experts, ExpertUse, take_apart

COUNT, HIDDEN, WIDTH, TOKENS = 4, 6, 5, 7


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_each_token_gets_the_weighted_sum_of_its_experts():
    gate_up, down = normal(COUNT, 2 * WIDTH, HIDDEN), normal(COUNT, HIDDEN, WIDTH, seed=1)
    x, weights = normal(TOKENS, HIDDEN, seed=2), normal(TOKENS, 2, seed=3)
    chosen = torch.tensor([[0, 1], [1, 0], [3, 1], [0, 3], [3, 0], [1, 3], [0, 1]])
    got = Experts(gate_up, down, silu)(x, chosen, weights)
    for token in range(TOKENS):
        expected = torch.zeros(HIDDEN, dtype=torch.float64)
        for number, weight in zip(chosen[token], weights[token], strict=True):
            gate, up = (gate_up[number] @ x[token]).split(WIDTH)
            expected += weight * (down[number] @ (silu(gate) * up))
        assert torch.allclose(got[token], expected, atol=1e-12)


def test_a_block_taken_apart_computes_the_same_on_the_same_memory():
    model = tiny_mixtral()
    before, block = logits_of(model, token_ids(2, 9)), blocks_of(model)[0]
    memory = block.mlp.experts.down_proj.untyped_storage().data_ptr()
    assert take_apart(block, "mlp.experts") == 5
    assert torch.equal(logits_of(model, token_ids(2, 9)), before)
    experts = block.mlp.experts
    last = experts.get_submodule("4").down_proj.weight
    assert last.untyped_storage().data_ptr() == memory
    assert take_apart(block, "mlp.experts") == 5
    assert block.mlp.experts is experts


@pytest.mark.parametrize("requires_grad", [False, True])
def test_weights_stay_trainable_or_not(requires_grad):
    block = blocks_of(tiny_mixtral().requires_grad_(requires_grad))[0]
    take_apart(block, "mlp.experts")
    assert {p.requires_grad for p in block.mlp.experts.parameters()} == {requires_grad}


def test_weights_of_another_form_are_named():
    block = blocks_of(tiny_mixtral())[0]
    block.mlp.experts.gate_up_proj.data = torch.zeros(5, 32, 96)
    with pytest.raises(
        UnsupportedModelError,
        match=r"'mlp\.experts' in a MixtralDecoderLayer should hold weights gate_up_proj .* found "
        r"shape \(5, 32, 96\) and shape \(5, 32, 48\)",
    ):
        take_apart(block, "mlp.experts")
    with pytest.raises(UnsupportedModelError, match="found none and none"):
        take_apart(blocks_of(tiny_llama())[0], "mlp")


def use_of(*calls):
    experts = Experts(normal(COUNT, 2 * WIDTH, HIDDEN), normal(COUNT, HIDDEN, WIDTH), silu)
    block, use = torch.nn.Sequential(experts), ExpertUse()
    with use.watched(block):
        for chosen in map(torch.tensor, calls):
            experts(normal(len(chosen), HIDDEN), chosen, torch.ones(chosen.shape).double())
    experts(normal(1, HIDDEN), torch.tensor([[2]]), torch.ones(1, 1).double())
    return use


def test_experts_that_get_few_tokens_are_named():
    often = [[0, 1, 3]] * 20
    assert use_of(often, [[1, 2, 3]]).rare == (2,)
    assert use_of(often, [[0, 2, 3]] * 2).rare == ()
    assert use_of([[1, 3]]).rare == (0, 2)


def test_without_experts_none_is_rare():
    use = ExpertUse()
    with use.watched(torch.nn.Linear(2, 2)):
        pass
    assert use.rare == ()
