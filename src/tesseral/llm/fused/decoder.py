"""A quantised model on a CUDA device: prompts in one pass, tokens by replaying a graph."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm
from transformers import PreTrainedModel

from tesseral._errors import BackendError, ShapeError
from tesseral.llm.fused.cache import FixedCache, check_room
from tesseral.llm.fused.support import supports
from tesseral.llm.layouts import blocks_of, final_norm_of
from tesseral.quantization.kernels.triton.device import on

if TYPE_CHECKING:
    from tesseral.llm.fused.block import FusedSite


class FusedDecoder:
    """Runs a quantised model with about ten launches a block, and records them for decoding.

    Results are those of the model's own modules up to rounding. Weights, scales and transforms
    are the model's; nothing is repacked.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of a kind that :func:`~tesseral.llm.fused.support.supports`, on its device.
    site : callable, optional
        Makes what :class:`~tesseral.llm.fused.block.FusedSite` is, of the same arguments.

    Raises
    ------
    BackendError
        If it is of another kind; the message says why.
    """

    def __init__(
        self, model: PreTrainedModel, site: "Callable[..., FusedSite] | None" = None
    ) -> None:
        verdict = supports(model)
        if not verdict.ok:
            raise BackendError(f"FusedDecoder: cannot run {type(model).__name__}: {verdict.reason}")
        from tesseral.llm.fused.block import FusedBlock, FusedSite

        site = FusedSite if site is None else site
        self.device, self.dtype = model.device, model.dtype
        self.blocks = [FusedBlock(block, model.dtype, site) for block in blocks_of(model)]
        self._embed: Any = model.get_input_embeddings()
        self._head: Any = model.get_output_embeddings()
        self._norm: Any = final_norm_of(model)
        body: Any = model.base_model
        self._rotary = body.rotary_emb

    def new_cache(self, batch: int, room: int) -> FixedCache:
        """Return an empty cache for so many sequences of so many tokens.

        Raises
        ------
        MemoryError
            If the device has not so much memory left.
        """
        first = self.blocks[0]
        if self.device.type == "cuda":
            sides = sum(sum(block.bits) * first.head_dim // 8 + 8 for block in self.blocks)
            check_room(batch * first.kv_heads * room * sides, self.device, batch, room)
        return FixedCache.empty(
            [block.bits for block in self.blocks],
            (batch, first.kv_heads, room),
            first.head_dim,
            self.device,
        )

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, cache: FixedCache) -> Tensor:
        """Read prompts into an empty cache; return the logits of each last token.

        Parameters
        ----------
        tokens : int64 tensor of shape (batch, length)
            Without padding.
        cache : FixedCache
            Whatever it holds is overwritten.

        Returns
        -------
        tensor of shape (batch, vocabulary)

        Raises
        ------
        ShapeError
            If the prompts do not fit the cache.
        """
        batch, length = tokens.shape
        there = cache.layers[0][0].shape[0], cache.room
        if batch != there[0] or not 0 < length <= there[1]:
            raise ShapeError(
                f"FusedDecoder: prompts of shape {tuple(tokens.shape)} do not fit a cache for "
                f"{there[0]} sequences of up to {there[1]} tokens."
            )
        cache.place.zero_()
        logits = self._run(tokens, cache, None)
        cache.place.fill_(length)
        return logits

    @torch.inference_mode()
    def step(self, tokens: Tensor, cache: FixedCache) -> Tensor:
        """Read one more token of every sequence, (batch, 1); return logits (batch, vocabulary).

        The caller moves ``cache.place`` on. Nothing here waits for the device.
        """
        slots = torch.arange(cache.room, device=self.device)
        return self._run(tokens, cache, (slots <= cache.place)[None, None, None])

    def _run(self, tokens: Tensor, cache: FixedCache, mask: Tensor | None) -> Tensor:
        with on(self.device):
            return self._logits(tokens, cache, mask)

    def _logits(self, tokens: Tensor, cache: FixedCache, mask: Tensor | None) -> Tensor:
        hidden = self._embed(tokens)
        positions = cache.place + torch.arange(tokens.shape[1], device=self.device)
        turn = self._rotary(hidden, position_ids=positions[None])
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            hidden = block(hidden, turn, layer, cache.place, mask)
        last = hidden[:, -1]
        last = rms_norm(last, last.shape[-1:], self._norm.weight, self._norm.variance_epsilon)
        return linear(last, self._head.weight, self._head.bias)
