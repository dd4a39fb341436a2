"""Files for llama.cpp hold the weights of a directory, in blocks of 32."""

import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from support.checkpoints import save
from support.models import tiny_llama, tiny_mistral
from tesseral._errors import MissingExtraError, UnsupportedModelError
from tesseral.bench.llm import gguf_file

SHAPE = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture
def original(tmp_path):
    return save(tiny_llama(**SHAPE), tmp_path / "original")


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason="written with the package gguf")


@pytest.mark.parametrize(("form", "error"), [("Q4_0", 0.15), ("Q8_0", 0.01)])
def test_every_matrix_is_there_to_a_roundings_error(gguf, original, tmp_path, form, error):
    file = gguf_file.write_gguf(original, tmp_path / "model.gguf", form)
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}
    weights = load_file(original / "model.safetensors")
    assert len(found) == len(weights)
    down = weights["model.layers.1.mlp.down_proj.weight"].float().numpy()
    tensor = found["blk.1.ffn_down.weight"]
    assert tensor.tensor_type.name == form
    got = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    assert np.abs(got - down).max() < error * np.abs(down).max()
    norm = weights["model.layers.0.input_layernorm.weight"].float().numpy()
    assert np.array_equal(found["blk.0.attn_norm.weight"].data, norm)


def test_rows_that_are_rotated_together_are_neighbours(gguf, original, tmp_path):
    file = gguf_file.write_gguf(original, tmp_path / "model.gguf", "Q8_0")
    found = {t.name: t for t in gguf.GGUFReader(file).tensors}["blk.0.attn_k.weight"]
    weights = load_file(original / "model.safetensors")
    key = weights["model.layers.0.self_attn.k_proj.weight"].float().numpy()
    got = gguf.quants.dequantize(found.data, found.tensor_type)
    half = key.shape[0] // 2 // 2  # of a head, of which there are two
    assert np.allclose(got[0:4:2], key[:2], atol=0.01)
    assert np.allclose(got[1:5:2], key[half : half + 2], atol=0.01)


def test_only_a_llama_is_written(gguf, tmp_path):
    path = save(tiny_mistral(**SHAPE), tmp_path / "original")
    with pytest.raises(UnsupportedModelError, match="only a Llama is written"):
        gguf_file.write_gguf(path, tmp_path / "model.gguf", "Q8_0")


def test_without_gguf_the_extra_is_named(original, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"tesseral\[peers\]"):
        gguf_file.write_gguf(original, tmp_path / "model.gguf", "Q8_0")
