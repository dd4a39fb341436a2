"""What is timed on a CUDA device: prompts, and tokens by replaying a graph, of either model."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tesseral.llm.cache_argument import CACHE
from tesseral.llm.fused import DecodeGraph, FusedDecoder


class CudaSide(Protocol):
    """A model on the device."""

    def prefill(self, tokens: Tensor) -> object:
        """Read prompts (batch, length), and find the likeliest next tokens."""
        ...

    def decoder(self, batch: int, context: int, more: int) -> Callable[[], object]:
        """Return a call that generates a token for each of ``batch`` contexts."""
        ...


class OurSide:
    """A quantised model under :class:`~tesseral.llm.fused.FusedDecoder`."""

    def __init__(self, decoder: FusedDecoder) -> None:
        self._decoder = decoder

    def prefill(self, tokens: Tensor) -> object:
        """Read prompts into a new cache."""
        cache = self._decoder.new_cache(*tokens.shape)
        return self._decoder.prefill(tokens, cache).argmax(-1)

    def decoder(self, batch: int, context: int, more: int) -> Callable[[], object]:
        """Return a replay behind a context of random codes."""
        cache = self._decoder.new_cache(batch, context + more)
        for keys, values in cache.layers:
            for side in (keys, values):
                side.data.random_(0, 256)
                side.scale.fill_(0.2)
                side.offset.fill_(-1.5)
        cache.place.fill_(context)
        graph = DecodeGraph(self._decoder, cache)

        def replay() -> None:
            cache.place.fill_(context)
            graph.advance(1)

        return replay


class _Slots:
    """Keys and values of one layer in float16, as transformers' static cache holds them."""

    def __init__(self, shape: tuple[int, ...], place: Tensor) -> None:
        self.keys, self.values = torch.randn(2, *shape, dtype=torch.float16, device="cuda")
        self.place = place

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store new tokens; give them back alone if they are a prompt, else all there is."""
        slots = self.place + torch.arange(key.shape[2], device=key.device)
        self.keys.index_copy_(2, slots, key)
        self.values.index_copy_(2, slots, value)
        if key.shape[2] > 1:
            return key, value
        return self.keys, self.values


class DenseSide:
    """transformers' decoder layers under torch's attention, compiled, a step recorded as a graph.

    Layers are compiled one by one, which is the same code for all of them.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        for layer in model.model.layers:
            layer.self_attn.layer_idx = 0  # or each would be compiled again
        self._layer: Any = torch.compile(_layer, dynamic=False)

    def prefill(self, tokens: Tensor) -> object:
        """Read prompts into a new cache."""
        batch, length = tokens.shape
        place = torch.zeros(1, dtype=torch.int64, device="cuda")
        return self._run(tokens, self._slots(batch, length, place), place, None)

    def decoder(self, batch: int, context: int, more: int) -> Callable[[], object]:
        """Return a replay behind a context of random keys and values."""
        place = torch.full((1,), context, dtype=torch.int64, device="cuda")
        slots = self._slots(batch, context + more, place)
        tokens = torch.zeros(batch, 1, dtype=torch.int64, device="cuda")

        def step() -> None:
            mask = (torch.arange(context + more, device="cuda") <= place)[None, None, None]
            tokens.copy_(self._run(tokens, slots, place, mask.expand(batch, 1, 1, -1))[:, None])

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        replay: Callable[[], object] = graph.replay
        return replay

    def _slots(self, batch: int, room: int, place: Tensor) -> list[_Slots]:
        config = self._model.config
        shape = batch, config.num_key_value_heads, room, config.head_dim
        return [_Slots(shape, place) for _ in self._model.model.layers]

    @torch.inference_mode()
    def _run(
        self, tokens: Tensor, slots: list[_Slots], place: Tensor, mask: Tensor | None
    ) -> Tensor:
        body = self._model.model
        hidden = body.embed_tokens(tokens)
        positions = (place + torch.arange(tokens.shape[1], device="cuda"))[None]
        turn = body.rotary_emb(hidden, position_ids=positions)
        for layer, cache in zip(body.layers, slots, strict=True):
            hidden = self._layer(layer, hidden, mask, turn, cache)
        likeliest: Tensor = self._model.lm_head(body.norm(hidden[:, -1])).argmax(-1)
        return likeliest


def _layer(layer: Any, hidden: Tensor, mask: Tensor | None, turn: Any, cache: _Slots) -> Tensor:
    output: Tensor = layer(hidden, attention_mask=mask, position_embeddings=turn, **{CACHE: cache})
    return output
