"""Tiny random language models, built in the test that needs them."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MptConfig,
    MptForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 61

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # ten times the usual: scores spread, so that a wrong mask or scale shows in the logits
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}

DIVISIBLE = {
    "hidden_size": 48,
    "num_attention_heads": 12,
    "num_key_value_heads": 6,
    "head_dim": 8,
    "intermediate_size": 72,
}
"""Sizes that two and three ranks divide."""

SLIDING_WINDOW = 6
"""Window of the models that have one; shorter than the sequences of the tests."""


def tiny_llama(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Llama with two layers and grouped heads; ``changes`` go to its config."""
    config = LlamaConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(LlamaForCausalLM, config, seed)


def tiny_mistral(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Mistral whose every layer has a sliding window."""
    changes = {"sliding_window": SLIDING_WINDOW} | changes
    config = MistralConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(MistralForCausalLM, config, seed)


def tiny_qwen2(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Qwen2: biases on queries, keys and values, here not zero."""
    config = Qwen2Config(**_SHAPE | changes, attn_implementation=attention)
    model = _build(Qwen2ForCausalLM, config, seed)
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.bias.data = torch.linspace(-1, 1, part.out_features)
    return model


def tiny_qwen3(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Qwen3: norms on queries and keys, and a head_dim that is not hidden / heads."""
    config = Qwen3Config(**_SHAPE | {"head_dim": 12} | changes, attn_implementation=attention)
    return _build(Qwen3ForCausalLM, config, seed)


def tiny_gemma2(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Gemma 2: capped scores, a scale of its own, windows on every other layer."""
    changes = {
        "head_dim": 8,
        "sliding_window": SLIDING_WINDOW,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 3,
    } | changes
    config = Gemma2Config(**_SHAPE | changes, attn_implementation=attention)
    return _build(Gemma2ForCausalLM, config, seed)


def tiny_gemma3(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Gemma 3: heads of 256, norms on queries and keys, a window on the first layer."""
    n_layers = changes.get("num_hidden_layers", _SHAPE["num_hidden_layers"])
    changes = {
        "head_dim": 256,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": (["sliding_attention", "full_attention"] * n_layers)[:n_layers],
    } | changes
    config = Gemma3TextConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(Gemma3ForCausalLM, config, seed)


def tiny_gemma3_seeing(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Gemma 3 with an encoder of images, which are four tokens each."""
    n_layers = changes.get("num_hidden_layers", _SHAPE["num_hidden_layers"])
    text = {
        "head_dim": 16,
        "sliding_window": SLIDING_WINDOW,
        "layer_types": (["sliding_attention", "full_attention"] * n_layers)[:n_layers],
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=_SHAPE | text | changes,
        vision_config=vision,
        mm_tokens_per_image=4,
        # the last tokens of the vocabulary
        boi_token_index=58,
        eoi_token_index=59,
        image_token_index=60,
        attn_implementation=attention,
    )
    model = _build(Gemma3ForConditionalGeneration, config, seed)
    # it starts at zero: images would not be seen
    projection = model.model.multi_modal_projector.mm_input_projection_weight
    projection.data = torch.linspace(-1, 1, projection.numel()).reshape(projection.shape)
    return model


def tiny_phi3(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Phi-3: one matrix for queries, keys and values, and a sliding window."""
    changes = {"sliding_window": SLIDING_WINDOW} | changes
    config = Phi3Config(**_SHAPE | changes, attn_implementation=attention)
    return _build(Phi3ForCausalLM, config, seed)


def tiny_olmo2(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return an OLMo 2: norms after attention and MLP only, and over all queries and keys."""
    config = Olmo2Config(**_SHAPE | changes, attn_implementation=attention)
    return _build(Olmo2ForCausalLM, config, seed)


def tiny_mixtral(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Mixtral: every token goes through two of five experts."""
    changes = {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "experts_implementation": "eager",
    } | changes
    config = MixtralConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(MixtralForCausalLM, config, seed)


def tiny_qwen3_moe(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a Qwen3-MoE: experts in the first block and an ordinary MLP in the second."""
    changes = {
        "head_dim": 12,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 20,
        "mlp_only_layers": [1],
        "experts_implementation": "eager",
    } | changes
    config = Qwen3MoeConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(Qwen3MoeForCausalLM, config, seed)


def tiny_gpt_oss(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a GPT-OSS: attention sinks, windows on every other layer, experts."""
    changes = {
        "head_dim": 8,
        "sliding_window": SLIDING_WINDOW,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "experts_implementation": "eager",
    } | changes
    config = GptOssConfig(**_SHAPE | changes, attn_implementation=attention)
    model = _build(GptOssForCausalLM, config, seed)
    for layer in model.model.layers:
        layer.self_attn.sinks.data = torch.linspace(-2, 2, config.num_attention_heads)
    return model


def tiny_bert(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a BERT: an encoder, so attention goes both ways."""
    config = BertConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(BertForMaskedLM, config, seed)


def tiny_modern_bert(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a ModernBERT: an encoder with a window both ways on every other layer."""
    changes = {
        "local_attention": SLIDING_WINDOW,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    } | changes
    config = ModernBertConfig(**_SHAPE | changes, attn_implementation=attention)
    return _build(ModernBertForMaskedLM, config, seed)


def tiny_t5(attention: str = "eager", seed: int = 0, **changes) -> PreTrainedModel:
    """Return a T5: encoder and decoder, scores with a learned bias by distance."""
    shape = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2}
    rest = {"num_heads": 4, "dropout_rate": 0.0, "decoder_start_token_id": 1, "eos_token_id": None}
    config = T5Config(**shape | rest | changes, attn_implementation=attention)
    model = _build(T5ForConditionalGeneration, config, seed)
    for part in (model.encoder, model.decoder):
        table = part.block[0].layer[0].SelfAttention.relative_attention_bias.weight
        table.data = torch.linspace(-3, 3, table.numel()).reshape(table.shape)
    return model


def tiny_bloom(attention: str = "eager", seed: int = 0) -> PreTrainedModel:
    """Return a Bloom: its attention is its own, and adds masks to scores."""
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, attn_implementation=attention
    )
    return _build(BloomForCausalLM, config, seed)


def tiny_mpt(attention: str = "eager", seed: int = 0) -> PreTrainedModel:
    """Return an MPT: its attention is its own, and hides what masks mark."""
    config = MptConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        n_layers=2,
        n_heads=4,
        max_seq_len=64,
        attn_implementation=attention,
    )
    return _build(MptForCausalLM, config, seed)


BUILDERS = {"llama": tiny_llama, "mistral": tiny_mistral, "qwen3": tiny_qwen3}
"""The decoders that every test of a model should hold for."""

DECODERS = BUILDERS | {
    "qwen2": tiny_qwen2,
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "gpt_oss": tiny_gpt_oss,
    "phi3": tiny_phi3,
}
"""The decoders that every test of attention should hold for."""


def token_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return random tokens of shape (batch, length), none of them the padding token 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def _build(kind: type[PreTrainedModel], config, seed: int) -> PreTrainedModel:
    # model constructors draw from the global generator, which stays as it was
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).eval()
