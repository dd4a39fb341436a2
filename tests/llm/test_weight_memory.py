"""Weights that every token reads move to large pages, with values, ties and files as they were."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import save
from support.models import tiny_llama
from tesseral.datasets import load_books_excerpt
from tesseral.llm import load, quantize, weight_memory
from tesseral.llm.weight_memory import gather_weights
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.linear import QuantizedLinear
from tesseral.runtime import large_pages

CONFIG = QuantizationConfig(
    transform="hadamard", rounding="nearest", samples=1, sequence_length=16, batch_size=1
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    original = save(tiny_llama(vocab_size=4096), folder / "original")
    return quantize(original, CONFIG, load_books_excerpt("calibration"), folder / "quantised")


@pytest.fixture
def model(directory):
    return load(directory, dtype=torch.bfloat16)[0]


def read(model):
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    return [layer.weight_codes for layer in layers] + [model.lm_head.weight]


@pytest.mark.skipif(large_pages.new_map(1) is None, reason="the system has no such memory")
def test_values_stay_and_addresses_follow_one_another(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    logits = model(tokens).logits
    moved = gather_weights(model, least=0)
    assert moved >= sum(tensor.nbytes for tensor in read(model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(tokens).logits, logits)
    begins = [tensor.data_ptr() for tensor in read(model)]
    assert begins[0] % large_pages.LARGE_PAGE == 0
    for begin, after, tensor in zip(begins, begins[1:], read(model), strict=False):
        assert 0 <= after - begin - tensor.nbytes < 64
    # each is a storage of its own, or saving would take them for one
    assert len({tensor.untyped_storage().data_ptr() for tensor in read(model)}) == len(begins)


def test_what_shares_a_weight_goes_along(model):
    model.lm_head.weight = model.model.embed_tokens.weight
    gather_weights(model, least=0)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_moved_model_is_copied_and_saved(model, tmp_path):
    gather_weights(model, least=0)
    twin = copy.deepcopy(model)
    assert all(torch.equal(a, b) for a, b in zip(read(model), read(twin), strict=True))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight_codes"
    assert torch.equal(saved[name], model.get_buffer(name))


def test_a_small_model_stays_and_a_large_one_is_moved_on_loading(directory, monkeypatch):
    assert gather_weights(load(directory)[0]) == 0
    calls = []
    monkeypatch.setattr("tesseral.llm.loading.gather_weights", calls.append)
    load(directory)
    assert len(calls) == 1


def test_without_large_pages_nothing_moves(model, monkeypatch):
    monkeypatch.setattr(weight_memory, "new_map", lambda _: None)
    assert gather_weights(model, least=0) == 0


def test_what_was_read_of_a_file_is_given_back(directory):
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", framework="pt") as file:
        tensor = file.get_tensor("model.embed_tokens.weight")
    ranges = large_pages.mapped_weights()
    begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    if not any(low <= begin < high for low, high in ranges):
        pytest.skip("weights are not mapped here")
    expected = tensor.clone()
    large_pages.drop_mapped(begin, end, ranges)
    assert torch.equal(tensor, expected)
    held = torch.ones(2**20)  # memory of no file stays as it is
    large_pages.drop_mapped(held.data_ptr(), held.data_ptr() + held.nbytes, ranges)
    assert (held == 1).all()
