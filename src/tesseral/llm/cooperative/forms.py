"""In which form the layers of a model store keys and values in caches that attend by themselves."""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer

from tesseral._errors import ParameterError
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.cache import QuantizedKVLayer, kv_codecs
from tesseral.llm.cooperative.room import Pair, encode, plain_codec
from tesseral.llm.division import head_ranks, heads_of
from tesseral.quantization.kvcodec import KVCodec


def codecs_of(model: PreTrainedModel, bits: tuple[int, int], *, what: str) -> list[KVCodec | None]:
    """Return the codec of each layer: the model's own or, of another width than 16, plain ones.

    Parameters
    ----------
    model : transformers model
    bits : (int, int)
        Widths of keys and values of a model without codecs.
    what : str
        Named in errors.

    Raises
    ------
    ParameterError
        If the model has another attention than ours.
    """
    implementation = model.config._attn_implementation
    if implementation != IMPLEMENTATION:
        raise ParameterError(
            f"{what}: {type(model).__name__} uses attn_implementation={implementation!r}; call "
            f"model.set_attn_implementation({IMPLEMENTATION!r}) first."
        )
    if _has_codecs(model):
        return list(kv_codecs(model))
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    return [plain_codec(*bits, model.device)] * n_layers


def nothing_of(model: PreTrainedModel, batch: int, codec: KVCodec | None) -> Pair:
    """Return keys and values of no token as they are stored."""
    text: Any = model.config.get_text_config(decoder=True)
    _, kv_heads, width = heads_of(text, head_ranks(model))
    empty = torch.empty(batch, kv_heads, 0, width, dtype=model.dtype, device=model.device)
    return encode(codec, empty, empty)


def sliding_layer(model: PreTrainedModel, codec: KVCodec | None, window: int) -> Any:
    """Return a layer that keeps a window, on the model's device."""
    if codec is not None and _has_codecs(model):
        return QuantizedKVLayer(codec, window)
    return DynamicSlidingWindowLayer(window)


def _has_codecs(model: PreTrainedModel) -> bool:
    return any(getattr(module, "kv_codec", None) is not None for module in model.modules())
