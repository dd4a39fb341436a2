"""The weights of a Llama directory in the file format of llama.cpp."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from tesseral._errors import UnsupportedModelError
from tesseral.runtime.extras import require

FORMATS = ("Q4_0", "Q8_0")
"""Formats of llama.cpp that are measured: blocks of 32 codes and a scale."""

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: Path, out: Path, form: str) -> Path:
    """Write a Llama directory as a GGUF file whose matrices are all in one format.

    Parameters
    ----------
    model : Path
        Directory with safetensors weights, not quantised.
    out : Path
        File to write. It holds no tokenizer: tokens go in as numbers.
    form : str
        One of :data:`FORMATS`.

    Raises
    ------
    UnsupportedModelError
        If it is no Llama.
    """
    gguf: Any = require("gguf", extra="peers", purpose="tesseral bench llm")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise UnsupportedModelError(
            f"bench llm: only a Llama is written for llama.cpp, not {config['model_type']!r}."
        )
    writer = gguf.GGUFWriter(out, "llama")
    _describe(writer, gguf, config)
    kind = gguf.GGMLQuantizationType[form]
    for name, array in _tensors(model, config):
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _describe(writer: Any, gguf: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.GUESSED)


def _tensors(model: Path, config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield names of llama.cpp and float32 arrays."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118  # it is no mapping
                block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", key)
                part = _NAMES[block[2] if block else key.removesuffix(".weight")]
                array = weights.get_tensor(key).to(torch.float32).numpy()
                if part in heads:
                    array = _pairs_together(array, heads[part])
                yield (f"blk.{block[1]}." if block else "") + f"{part}.weight", array


def _pairs_together(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorder rows: transformers rotates row i with row i + d/2, llama.cpp neighbours."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
