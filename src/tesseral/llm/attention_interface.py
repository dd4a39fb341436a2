"""Our attention under transformers: the function that every attention module calls.

A model built with ``attn_implementation="tesseral"`` comes here with rotated queries and
keys. What it may attend to comes from our own mask function (:mod:`.attention_mask`), so
function and mask are registered together: without the second, transformers would pass no
mask at all and causality would be lost.
"""

from typing import Any, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from tesseral._errors import BackendError, DtypeError, ParameterError, ShapeError
from tesseral.attention import attention, attention_varlen
from tesseral.core.packed import PackedTensor
from tesseral.llm.attention_mask import attention_mask
from tesseral.llm.paged_cache import PACKED, PagedKVCache
from tesseral.llm.paged_rows import States
from tesseral.llm.placed import PlacedStates
from tesseral.llm.rule_mask import BandMask, SegmentMask
from tesseral.quantization.kvcodec import KVCodec

IMPLEMENTATION = "tesseral"
"""Value of ``attn_implementation`` that selects our attention."""


class EncodedTensor(torch.Tensor):
    """Keys or values that their layer's codec has encoded already but keeps in 16 or 32 bits."""


def register() -> None:
    """Register our attention function and our mask function with transformers.

    Doing it again changes nothing.
    """
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, attention_mask)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: States | PlacedStates,
    value: States | PlacedStates,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, as transformers asks an attention function to.

    A module with an attribute ``kv_codec`` has its queries transformed and its keys and
    values encoded first; keys and values out of a
    :class:`~tesseral.llm.cache.QuantizedKVCache` come encoded and stay as they are.

    Parameters
    ----------
    module : torch.nn.Module
        The attention module that calls; ``is_causal`` and ``kv_codec`` are read from it.
    query : tensor of shape (batch, q_heads, q_len, head_dim)
        Queries after rotary embedding.
    key, value : tensor or PackedTensor of shape (batch, kv_heads, kv_len, head_dim)
        ``q_heads`` is a multiple of ``kv_heads``. Or, twice, the same :class:`PlacedStates`.
    attention_mask : BandMask, SegmentMask, or boolean or floating tensor, or None
        What each query may see. ``None`` means all keys or, for a causal module, those up to
        the query's own.
    scaling : float, optional
        Factor of the scores; ``head_dim ** -0.5`` by default.
    dropout : float
        Must be zero.
    is_causal : bool, optional
        In place of ``module.is_causal``; matters only without a mask.
    sliding_window : int, optional
        Size of the window, the query's own key included; matters only without a mask.
    softcap : float, optional
        Bounds the scores to ``softcap * tanh(scores / softcap)``.
    s_aux : tensor of shape (q_heads,), optional
        Attention sinks: a score of nothing for each head.
    position_bias : tensor that broadcasts to (batch, q_heads, q_len, kv_len), optional
        Added to the scaled scores, beside any mask.

    Returns
    -------
    tensor of shape (batch, q_len, q_heads, head_dim), contiguous
    None
        In place of attention weights, which are never formed.

    Raises
    ------
    BackendError
        For dropout, attention weights, another argument of a model that changes the result
        and is not listed here, or a paged cache that is not ours.
    ShapeError, DtypeError, ParameterError
        If mask, keys and codec do not fit together.
    """
    _refuse_unsupported(dropout, kwargs)
    placed = None
    if isinstance(key, PlacedStates):
        placed, query = key, _transform(module, query)
    else:
        query, key, value = _encode(module, query, key, cast(States, value))
    rules: dict[str, Any] = {"scale": scaling, "softcap": softcap, "sinks": s_aux}
    if kwargs.get("cache") is not None and not isinstance(key, PlacedStates):
        cache = _paged(module, kwargs["cache"], attention_mask, position_bias)
        layer: Any = module.layer_idx
        rules["sliding_window"] = sliding_window
        return cache.attend(layer, query, key, cast(States, value), kwargs, **rules), None
    if isinstance(attention_mask, SegmentMask):
        if position_bias is None and isinstance(key, torch.Tensor):
            return _attend_segments(query, key, value, attention_mask, rules), None
        attention_mask = attention_mask.materialize()
    sizes = query.shape[-2], int(key.shape[-2])
    if isinstance(attention_mask, BandMask):
        rule = _rule_of_band(attention_mask, sizes)
        if attention_mask.n_keys < sizes[1] and not isinstance(key, PlacedStates):
            # keys that no query sees go, so that the band ends at the last key
            key = key[:, :, : attention_mask.n_keys]
            value = cast(States, value)[:, :, : attention_mask.n_keys]
    elif attention_mask is None:
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        rule = _rule_without_mask(*sizes, is_causal=is_causal, size=sliding_window)
    else:
        rule = _rule_of_mask(attention_mask)
    if position_bias is not None:
        rule = rule | {"mask": _biased(rule.get("mask"), position_bias[..., : key.shape[2]])}
    output: Any = (
        attention(query, key, value, **rules, **rule)
        if placed is None
        else placed.attend(query, rules | rule)
    )
    return output.transpose(1, 2).contiguous(), None


_UNSUPPORTED = {
    "output_attentions": "attention weights are never formed, so output_attentions=True is",
    "indices": "attention to chosen keys (indices) is",
    "block_indices": "attention to chosen blocks of keys (block_indices) is",
    "sinks": "a sink for each query (sinks) is",
    "head_mask": "a mask of heads (head_mask) is",
}
"""Arguments by which some models ask for what we do not do, and how a message names them."""


def _refuse_unsupported(dropout: float, options: dict[str, Any]) -> None:
    if dropout:
        raise BackendError(
            f"tesseral attention: dropout={dropout} is not supported; train with "
            "attention_dropout=0 or another attn_implementation."
        )
    if _UNSUPPORTED.keys().isdisjoint(options):
        return
    for name, what in _UNSUPPORTED.items():
        # None and False say that it is not asked for; of an array neither may be asked
        if options.get(name) is not None and options[name] is not False:
            raise BackendError(
                f"tesseral attention: {what} not supported; use attn_implementation='eager'."
            )


def _paged(
    module: torch.nn.Module,
    cache: Any,
    mask: torch.Tensor | None,
    position_bias: torch.Tensor | None,
) -> PagedKVCache:
    """Return the cache of continuous batching, once it is sure that it says all of what is seen."""
    if not isinstance(cache, PagedKVCache):
        raise BackendError(
            f"tesseral attention: a paged cache of type {type(cache).__name__} cannot be read; "
            "call tesseral.llm.generate_batch(model, ...) in place of model.generate_batch(...)."
        )
    causal = getattr(module, "is_causal", True)
    if mask is not PACKED or position_bias is not None or not causal:
        raise BackendError(
            "tesseral attention: continuous batching takes neither masks nor position biases nor "
            "attention to later tokens; use generate() for this model."
        )
    return cache


def _attend_segments(
    query: torch.Tensor, key: Any, value: Any, mask: SegmentMask, rules: dict[str, Any]
) -> torch.Tensor:
    """Attend within each of the sequences that are packed in rows, all rows in one call."""
    tokens: list[Any] = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    edges: Any = mask.edges
    output: Any = attention_varlen(
        tokens[0],
        tokens[1],
        tokens[2],
        cu_seqlens_q=edges,
        cu_seqlens_k=edges,
        **rules,
        **mask.rule,
    )
    attended: torch.Tensor = output.unflatten(0, (query.shape[0], query.shape[2]))
    return attended


def _encode(
    module: torch.nn.Module, query: torch.Tensor, key: States, value: States
) -> tuple[torch.Tensor, States, States]:
    """Bring queries, keys and values into the form in which they are attended to."""
    # asking a module for an attribute that it lacks takes as long as all the rest here
    parts = module.__dict__.get("_modules", module.__dict__)
    codec: KVCodec | None = parts.get("kv_codec")
    encoded = isinstance(key, (PackedTensor, EncodedTensor))
    if codec is None and encoded:
        raise ParameterError(
            f"tesseral attention: {type(module).__name__} has no kv_codec but gets encoded keys; "
            "the cache belongs to another model."
        )
    if codec is not None:
        query = codec.transform_query(query)
        if not encoded:
            key, value = codec.encode(cast(torch.Tensor, key), cast(torch.Tensor, value))
    return query, _plain(key), _plain(value)


def _transform(module: torch.nn.Module, query: torch.Tensor) -> torch.Tensor:
    """Return queries that fit the keys of a module's codec, if it has one."""
    codec: KVCodec | None = module.__dict__.get("_modules", module.__dict__).get("kv_codec")
    return query if codec is None else codec.transform_query(query)


def _biased(mask: torch.Tensor | None, bias: torch.Tensor) -> torch.Tensor:
    """Return the additive mask that hides what ``mask`` hides and else adds ``bias``."""
    if mask is None:
        return bias
    if mask.dtype == torch.bool:
        return torch.where(mask, bias, -torch.inf)
    return mask + bias


def _plain(states: States) -> States:
    if isinstance(states, EncodedTensor):
        return states.as_subclass(torch.Tensor)
    return states


def _rule_without_mask(
    q_len: int, kv_len: int, *, is_causal: bool, size: int | None
) -> dict[str, Any]:
    """Return what to see when the model brings no mask."""
    if is_causal and q_len not in (1, kv_len):
        raise ShapeError(
            f"tesseral attention: {q_len} queries on {kv_len} keys came without a mask, so where "
            "the queries stand among the keys is unknown; pass an attention mask."
        )
    if size is None:
        return {"is_causal": is_causal}
    return {"is_causal": is_causal, "window": (size - 1, size - 1)}


def _rule_of_band(mask: BandMask, sizes: tuple[int, int]) -> dict[str, Any]:
    """Return what to see under a band, once keys past the last one seen are gone."""
    if mask.sizes != sizes:
        raise ShapeError(
            f"tesseral attention: a mask for {mask.sizes[0]} queries on {mask.sizes[1]} keys "
            f"does not fit {sizes[0]} queries on {sizes[1]} keys."
        )
    return mask.rule


def _rule_of_mask(mask: torch.Tensor) -> dict[str, Any]:
    """Return what to see under a dense mask."""
    if not isinstance(mask, torch.Tensor):
        raise DtypeError(
            f"tesseral attention: a mask of type {type(mask).__name__} cannot be read; "
            "a boolean or floating tensor can."
        )
    if mask.ndim != 4:
        # of two axes it would be padding by row, or what each query sees: not to be guessed
        raise ShapeError(
            f"tesseral attention: a mask must have 4 axes (batch, heads, q_len, kv_len), got "
            f"shape {tuple(mask.shape)}."
        )
    return {"mask": mask}
