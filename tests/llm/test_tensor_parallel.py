"""A model divided among ranks says what it says on one device; others are refused."""

from importlib import import_module

import numpy as np
import pytest
import torch
import torch.distributed as dist

from support.budget import assert_within_budget
from support.checkpoints import TEXT, save
from support.models import (
    DIVISIBLE,
    tiny_gpt_oss,
    tiny_llama,
    tiny_mixtral,
    tiny_olmo2,
    tiny_phi3,
    tiny_qwen2,
    tiny_qwen3,
    tiny_qwen3_moe,
    token_ids,
)
from support.ranks import run_ranks
from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.llm import load, load_parallel, quantize, tensor_parallel
from tesseral.llm.divided_layers import divide_experts
from tesseral.quantization import QuantizationConfig

module = import_module("tesseral.llm.tensor_parallel")

DENSE = ("plain", "half", "biased", "normed", "fused", "all normed", "experts", "experts and MLP")
CODED = ("quantised", "grouped", "fused, quantised", "all normed, quantised", "experts, quantised")
SUMS = {"fused": 2, "all normed": 2, "experts": 1, "experts and MLP": 2}
"""Shapes of layers that are summed tile by tile, where it is not one for each half of a block."""

NAMES = DENSE + CODED
IDS = token_ids(2, 19)

PROGRAM = f"""
import numpy as np
from tesseral.llm import load_parallel, overlap_sums
from support.models import token_ids
found = {{}}
with torch.no_grad():
    for name in {NAMES!r}:
        model, _ = load_parallel(f"{{folder}}/{{name}}")
        found[name] = model(token_ids(2, 19)).logits.numpy()
        if name in {DENSE!r}:
            costs = overlap_sums(model, 19)
            assert len(costs) == {SUMS!r}.get(name, 2), costs
            found[f"{{name}}, overlapped"] = model(token_ids(2, 19)).logits.numpy()
        else:
            out = model.generate(token_ids(2, 19), max_new_tokens=6, do_sample=False)
            found[f"{{name}}, generated"] = out.numpy()
        held = sum(t.numel() for t in model.model.layers.state_dict().values())
        found[f"{{name}}, held"] = np.array(held)
np.savez(f"{{folder}}/{{rank}}.npz", **found)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llama(**DIVISIBLE), folder / "plain")
    save(tiny_llama(**DIVISIBLE).bfloat16(), folder / "half")
    save(tiny_qwen2(**DIVISIBLE), folder / "biased")
    save(tiny_qwen3(**DIVISIBLE), folder / "normed")
    save(tiny_phi3(**DIVISIBLE, sliding_window=None), folder / "fused")
    save(tiny_olmo2(**DIVISIBLE), folder / "all normed")
    save(tiny_mixtral(**DIVISIBLE), folder / "experts")
    save(tiny_qwen3_moe(**DIVISIBLE | {"moe_intermediate_size": 24}), folder / "experts and MLP")
    config = {"epochs": 1, "samples": 4, "sequence_length": 16, "batch_size": 2}
    for name, more in (("quantised", {}), ("grouped", {"group_size": 8})):
        settings = QuantizationConfig(**config | more)
        quantize(folder / "plain", settings, TEXT, folder / name)
    for name in ("fused", "all normed", "experts"):
        settings = QuantizationConfig(**config)
        quantize(folder / name, settings, TEXT, folder / f"{name}, quantised")
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, models):
    codes, errors = run_ranks(PROGRAM, request.param, models)
    assert codes == [0] * request.param, "\n".join(errors)
    return [np.load(models / f"{rank}.npz") for rank in range(request.param)]


def alone(models, name, dtype=torch.float32):
    model, _ = load(models / name, dtype=dtype)
    if name.startswith("experts"):
        model.set_experts_implementation("eager")  # others know no float64
    with torch.no_grad():
        return model, model(IDS).logits.numpy()


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("how", ["", ", overlapped"])
def test_dense_logits_are_those_of_one_device_within_the_budget(ranks, models, name, how):
    _, oracle = alone(models, name, torch.float64)
    _, peer = alone(models, name)
    for rank in ranks:
        assert_within_budget(rank[name + how], oracle, peer, floor=1e-5)
        np.testing.assert_array_equal(rank[name + how], ranks[0][name + how])


@pytest.mark.parametrize("name", CODED)
def test_quantised_logits_and_tokens_are_those_of_one_device_to_the_bit(ranks, models, name):
    model, expected = alone(models, name)
    tokens = model.generate(IDS, max_new_tokens=6, do_sample=False)
    for rank in ranks:
        np.testing.assert_array_equal(rank[name], expected)
        np.testing.assert_array_equal(rank[f"{name}, generated"], tokens)


@pytest.mark.parametrize("name", NAMES)
def test_a_rank_holds_its_part(ranks, models, name):
    whole = sum(t.numel() for t in load(models / name)[0].model.layers.state_dict().values())
    for rank in ranks:
        # experts in our format are whole on every rank
        share = 0.97 if name == "experts, quantised" else 0.75
        assert rank[f"{name}, held"] < share * whole


ON_DEVICES = f"""
import numpy as np
from tesseral.attention.distributed import PeerMemory, peers_refused
from tesseral.llm import load, load_parallel, overlap_sums
from support.models import token_ids
found = {{}}
ids = token_ids(2, 19).to(device)
assert peers_refused(device) is None, peers_refused(device)
peers = PeerMemory(2 * 19, {DIVISIBLE["hidden_size"]}, dtype=torch.float32, device=device)
with torch.no_grad():
    for name in ("plain", "fused", "experts"):
        alone, _ = load(f"{{folder}}/{{name}}", device=device)
        found[f"{{name}}, alone"] = alone(ids).logits
        model, _ = load_parallel(f"{{folder}}/{{name}}", device=device)
        found[name] = model(ids).logits
        overlap_sums(model, 19, peers=peers)
        found[f"{{name}}, overlapped"] = model(ids).logits
np.savez(f"{{folder}}/cuda-{{rank}}.npz", **{{name: x.cpu().numpy() for name, x in found.items()}})
"""


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_over_nccl_logits_are_those_of_one_device(tmp_path):
    save(tiny_llama(**DIVISIBLE), tmp_path / "plain")
    save(tiny_phi3(**DIVISIBLE, sliding_window=None), tmp_path / "fused")
    save(tiny_mixtral(**DIVISIBLE), tmp_path / "experts")
    codes, errors = run_ranks(ON_DEVICES, 2, tmp_path, backend="nccl", limit_s=60)
    assert codes == [0, 0], "\n".join(errors)
    first, second = (np.load(tmp_path / f"cuda-{rank}.npz") for rank in range(2))
    for name, got in first.items():
        np.testing.assert_array_equal(got, second[name], err_msg=name)
        if not name.endswith("alone"):
            expected = first[f"{name.removesuffix(', overlapped')}, alone"]
            assert np.linalg.norm(got - expected) < 5e-3 * np.linalg.norm(expected), name


@pytest.mark.parametrize("name", ["half", "quantised"])
def test_only_a_part_changes_its_type_and_place(models, monkeypatch, name):
    as_rank_0(monkeypatch, 2)
    seen, settled = set(), []

    def watched(model, **more):
        seen.update(parameter.dtype for parameter in model.parameters())
        return tensor_parallel(model, **more)

    def settle(model):
        settled.append(sum(t.numel() for t in model.model.layers.state_dict().values()))

    monkeypatch.setattr(module, "tensor_parallel", watched)
    monkeypatch.setattr(module, "settle", settle)
    model, _ = load_parallel(models / name)
    assert seen == {torch.bfloat16 if name == "half" else torch.float32}
    assert model.config.dtype == model.dtype == torch.float32
    whole = sum(t.numel() for t in load(models / name)[0].model.layers.state_dict().values())
    assert settled[0] < 0.75 * whole
    short, _ = load_parallel(models / name, dtype=torch.bfloat16)
    expected, _ = load(models / name, dtype=torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in expected.named_parameters()}
    assert types.items() >= {name: p.dtype for name, p in short.named_parameters()}.items()


def as_rank_0(monkeypatch, size):
    monkeypatch.setattr(dist, "get_world_size", lambda _=None: size)
    monkeypatch.setattr(dist, "get_rank", lambda _=None: 0)


def test_what_ranks_do_not_divide_is_refused_and_left_alone(monkeypatch):
    model = tiny_llama(**DIVISIBLE)
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    as_rank_0(monkeypatch, 4)
    with pytest.raises(ParameterError, match="4 ranks do not divide num_key_value_heads=6"):
        tensor_parallel(model)
    as_rank_0(monkeypatch, 3)
    with pytest.raises(ParameterError, match=r"3 ranks do not divide the 50 channels of .*gate"):
        tensor_parallel(tiny_llama(**DIVISIBLE | {"intermediate_size": 50}))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before


def test_heads_that_ranks_have_whole_need_no_division(monkeypatch):
    as_rank_0(monkeypatch, 4)  # of 6 key heads of 8
    tensor_parallel(tiny_olmo2(**DIVISIBLE))
    as_rank_0(monkeypatch, 7)
    with pytest.raises(ParameterError, match=r"7 ranks do not divide the 96 channels of .*o_proj"):
        tensor_parallel(tiny_phi3(**DIVISIBLE | {"num_key_value_heads": 3}))
    odd = {"num_attention_heads": 14, "num_key_value_heads": 7}
    with pytest.raises(ParameterError, match=r"7 ranks do not divide the 72 channels of .*experts"):
        tensor_parallel(tiny_mixtral(**DIVISIBLE | odd | {"hidden_size": 56}))


def test_gradients_do_not_pass_experts(monkeypatch):
    as_rank_0(monkeypatch, 2)
    model = tiny_mixtral(**DIVISIBLE)
    divide_experts(model.model.layers[0].mlp.experts, None)
    with pytest.raises(ParameterError, match="gradients do not pass a sum"):
        model(IDS)


def test_a_plan_with_unknown_styles_is_refused(monkeypatch):
    as_rank_0(monkeypatch, 2)
    model = tiny_llama(**DIVISIBLE)
    plan = dict(model.tp_plan)
    for style in ("grouped_gemm", "packed_colwise"):
        model.tp_plan = plan | {"model.layers.*.mlp.up_proj": style}
        with pytest.raises(UnsupportedModelError, match=f"is planned with {style}"):
            tensor_parallel(model)


def test_a_plan_of_no_block_is_refused(monkeypatch):
    as_rank_0(monkeypatch, 2)
    with pytest.raises(UnsupportedModelError, match=r"tp_plan of GptOss.* names no layer of its"):
        tensor_parallel(tiny_gpt_oss())
