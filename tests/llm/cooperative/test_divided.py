"""A divided model whose keys and values lie partly on the host says what it says on one device."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from support.checkpoints import TEXT, save
from support.chunks import TOKENS, fed
from support.models import DIVISIBLE, tiny_llama, tiny_phi3
from support.ranks import command_on_ranks, run_ranks
from tesseral._errors import ParameterError
from tesseral.llm import QuantizedKVCache, load, plan_memory, quantize
from tesseral.llm import generate as continued
from tesseral.quantization import QuantizationConfig

NAMES = ("plain", "fused", "quantised")
BIG = 1 << 40

PROGRAM = f"""
from dataclasses import replace
import numpy as np
from tesseral.llm import CooperativeCache, load_parallel, plan_memory
from tesseral.llm.cooperative.link import Link
from support.chunks import LENGTHS, fed
on_cuda, found = device.type == "cuda", {{}}
with torch.inference_mode():
    from support.chunks import TOKENS
    for name in {NAMES!r}:
        model, _ = load_parallel(f"{{folder}}/{{name}}", device=device)
        plan = plan_memory(model, sum(LENGTHS), {BIG}, {BIG}, batch=2)
        plan = replace(plan, host_layers=(1,), strip_tokens=10)
        link = Link(device) if on_cuda else Link(device, remote=True)
        cache = CooperativeCache(model, plan, passing=7, link=link)
        found[name] = fed(model, cache, TOKENS.to(device)).cpu().numpy()
        found[f"{{name}}, bytes"] = np.array([plan.layer_bytes, plan.weight_bytes])
np.savez(f"{{folder}}/{{rank}}.npz", **found)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save(tiny_llama(**DIVISIBLE), folder / "plain")
    save(tiny_phi3(**DIVISIBLE, sliding_window=None), folder / "fused")
    settings = QuantizationConfig(epochs=1, samples=4, sequence_length=16, batch_size=2)
    quantize(folder / "plain", settings, TEXT, folder / "quantised")
    return folder


def alone(models, name, device="cpu"):
    model, _ = load(models / name, device=device)
    cache = QuantizedKVCache(model) if name == "quantised" else DynamicCache(config=model.config)
    with torch.inference_mode():
        return fed(model, cache, TOKENS.to(device)).cpu().numpy()


@pytest.mark.parametrize("size", [2, 3])
def test_logits_are_those_of_one_device(models, size):
    codes, errors = run_ranks(PROGRAM, size, models, limit_s=60)
    assert codes == [0] * size, "\n".join(errors)
    for rank in range(size):
        found = np.load(models / f"{rank}.npz")
        for name in NAMES:
            np.testing.assert_allclose(found[name], alone(models, name), atol=2e-5, err_msg=name)
            whole = plan_memory(models / name, TOKENS.shape[1], BIG, BIG, batch=2)
            before = plan_memory(models / name, TOKENS.shape[1], BIG, BIG, batch=2, ranks=size)
            layer, weights = found[f"{name}, bytes"]
            assert layer == before.layer_bytes
            # the heads of fused layers are whole on every rank
            assert layer * (1 if name == "fused" else size) == whole.layer_bytes
            assert weights <= before.weight_bytes + 4096 < whole.weight_bytes


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_over_nccl_logits_are_those_of_one_device(models):
    codes, errors = run_ranks(PROGRAM, 2, models, backend="nccl", limit_s=60)
    assert codes == [0, 0], "\n".join(errors)
    for rank in range(2):
        found = np.load(models / f"{rank}.npz")
        for name in NAMES:
            expected = alone(models, name, "cuda")
            np.testing.assert_allclose(found[name], expected, atol=5e-3, err_msg=name)


def test_ranks_that_do_not_divide_heads_are_refused_before_anything_is_read(models):
    with pytest.raises(ParameterError, match="4 ranks do not divide num_key_value_heads=6"):
        plan_memory(models / "plain", 100, BIG, BIG, ranks=4)
    assert plan_memory(models / "fused", 100, BIG, BIG, ranks=4).layer_bytes


@pytest.mark.parametrize(("memory", "code"), [("0.5GB", 0), ("1MB", 2)])
def test_ranks_keep_to_a_budget(models, memory, code):
    generate = ("generate", models / "plain", "--prompt", "It was", "--max-new-tokens", "5")
    budget = ("--gpu-memory", memory, "--context", "60")
    codes, outputs, errors = command_on_ranks((*generate, *budget), 2)
    assert codes == [code, code], errors
    if code:
        assert all("0.00 GB of device memory do not hold the model" in error for error in errors)
    else:
        model, tokenizer = load(models / "plain")
        expected = continued(model, tokenizer, "It was", max_new_tokens=5)
        assert outputs == [expected + "\n", ""]
