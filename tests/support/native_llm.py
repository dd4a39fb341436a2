"""Small quantised models of random codes whose tokens go through our kernels."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tesseral.llm.cache import QuantizedKVCache
from tesseral.llm.native_modules import use_native_modules
from tesseral.llm.quantizer import install, mark_quantized
from tesseral.quantization import QuantizationConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
}
MODELS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def make_model(kind="llama", *, dtype=torch.bfloat16, widths=None, **changes):
    """Return a quantised model of random codes."""
    torch.manual_seed(0)
    config_class, model_class = MODELS[kind]
    model = model_class._from_config(config_class(**SHAPE | changes), dtype=dtype)
    config = QuantizationConfig(transform="hadamard", rounding="nearest", **(widths or {}))
    install(model, config)
    for name, array in (*model.named_buffers(), *model.named_parameters()):
        if name.endswith("weight_codes"):
            array.random_(0, 256)
        elif name.endswith("weight_scale"):
            array.fill_(0.02)
        elif "factor" in name:
            array.copy_(torch.linalg.qr(torch.randn(array.shape))[0])
        elif name.endswith("norm.weight"):
            array.data.uniform_(0.5, 1.5)
        elif name.endswith("proj.bias"):
            array.data.normal_()
    mark_quantized(model, config)
    model.set_attn_implementation("tesseral")
    use_native_modules(model)
    return model.eval()


def kernels_of(model):
    parts = [layer.__dict__.get("_parts") for layer in model.model.layers]
    return [None if p is None else p._kernel for p in parts]


@torch.inference_mode()
def logits(model, prompt, tokens, **options):
    cache, found = QuantizedKVCache(model), []
    model(prompt, past_key_values=cache, use_cache=True, **options)
    mask = options.get("attention_mask")
    for position in range(tokens.shape[1]):
        if mask is not None:
            mask = options["attention_mask"] = torch.nn.functional.pad(mask, (0, 1), value=1)
        token = tokens[:, position : position + 1]
        output = model(token, past_key_values=cache, use_cache=True, **options)
        found.append(output.logits[:, -1])
    return torch.stack(found)


def given(batch):
    generator = torch.Generator().manual_seed(batch)
    drawn = torch.randint(0, 64, (batch, 13), generator=generator)
    return drawn[:, :9], drawn[:, 9:]
