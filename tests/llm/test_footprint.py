"""Sizes are those of the files, the tensors and the cache."""

import torch

from support.checkpoints import save
from support.models import tiny_llama
from support.quantised import freeze, simulate, tiny
from tesseral.llm.footprint import disk_bytes, footprint
from tesseral.llm.quantizer import mark_quantized
from tesseral.quantization import QuantizationConfig

BLOCK = 32 * 32 * 2 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
"""Weights of one block of the tiny Llama: attention, keys and values, MLP, norms."""


def test_disk_counts_weight_files_alone(tmp_path):
    (tmp_path / "model-1.safetensors").write_bytes(b"0" * 100)
    (tmp_path / "model-2.safetensors").write_bytes(b"0" * 20)
    (tmp_path / "tokenizer.json").write_bytes(b"0" * 3)
    assert disk_bytes(tmp_path) == 120


def test_a_model_in_full_precision(tmp_path):
    model = tiny_llama("tesseral")
    size = footprint(save(model, tmp_path / "model"), model)
    inverse_frequencies = 2 * 4 * 4  # buffers of the rotary embedding
    assert size.block_bytes == 2 * BLOCK * 4
    assert size.memory_bytes == (2 * BLOCK + 2 * 61 * 32 + 32) * 4 + inverse_frequencies
    assert size.cache_bytes_per_token == 2 * 2 * 2 * 8 * 4  # layers, sides, heads, head_dim
    assert 0 < size.disk_bytes - (2 * BLOCK + 2 * 61 * 32 + 32) * 4 < 10_000


def test_tied_embeddings_count_once(tmp_path):
    path = save(tiny_llama(), tmp_path / "model")
    untied, tied = tiny_llama("tesseral"), tiny_llama("tesseral", tie_word_embeddings=True)
    held = [footprint(path, model).memory_bytes for model in (untied, tied)]
    assert held[0] - held[1] == 61 * 32 * 4


def test_a_quantised_model_holds_its_codes_packed(tmp_path):
    model, config = tiny("llama"), QuantizationConfig(transform="none")
    freeze(model, config, simulate(model, config))
    mark_quantized(model, config)
    size = footprint(save(model, tmp_path / "model"), model)
    rows = 32 + 16 + 16 + 32 + 48 + 48 + 32
    codes, norms = (BLOCK - 64) // 2, 64 * 4
    clips = (4 + 2) * 2 * 4  # of four inputs, keys and values
    assert size.block_bytes == 2 * (codes + rows * 4 + norms + clips)
    # head_dim 8 in four bits, with a scale and an offset of 16 bits
    assert size.cache_bytes_per_token == 2 * 2 * 2 * (4 + 2 + 2)


def test_measuring_leaves_no_gradients():
    model = tiny_llama("tesseral")
    footprint("nowhere", model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
