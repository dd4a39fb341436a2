"""Decoding by replaying what one step launches, recorded once."""

import torch
from torch import Tensor

from tesseral.llm.fused.cache import FixedCache
from tesseral.llm.fused.decoder import FusedDecoder


class DecodeGraph:
    """Greedy decoding of a batch, each token one replay of a CUDA graph.

    Parameters
    ----------
    decoder : FusedDecoder
        What runs a step.
    cache : FixedCache
        Read and written by every replay; it must live as long as this object.

    Attributes
    ----------
    history : int64 tensor of shape (batch, room)
        Tokens that were read, by slot; the next one is at ``cache.place``.
    """

    def __init__(self, decoder: FusedDecoder, cache: FixedCache) -> None:
        batch = cache.layers[0][0].shape[0]
        self._cache = cache
        self.history = torch.zeros(batch, cache.room + 1, dtype=torch.int64, device=decoder.device)
        held = cache.place.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compile and set aside before anything is recorded
            cache.place.fill_(cache.room - 1)
            self._step(decoder)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._step(decoder)
        cache.place.copy_(held)

    @torch.inference_mode()
    def _step(self, decoder: FusedDecoder) -> None:
        place = self._cache.place
        tokens = self.history.index_select(1, place)
        logits = decoder.step(tokens, self._cache)
        place.add_(1)
        self.history.index_copy_(1, place, logits.argmax(-1, keepdim=True))

    def start(self, prompt: Tensor, logits: Tensor) -> None:
        """Begin behind a prompt (batch, length) that the cache holds, with its last logits."""
        length = prompt.shape[1]
        self.history[:, :length] = prompt
        self.history[:, length] = logits.argmax(-1)
        self._cache.place.fill_(length)

    def advance(self, count: int) -> None:
        """Decode so many tokens; the caller keeps within the cache's room."""
        for _ in range(count):
            self._graph.replay()
