"""What enters a model's decoder blocks, found without running or reading any of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tesseral.llm.layouts import blocks_of
from tesseral.quantization.numerics import working_dtype


@torch.no_grad()
def hidden_states(model: PreTrainedModel, sequences: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield the hidden states of shape (batch, length, hidden) that enter the first block.

    Parameters
    ----------
    model : transformers model
        Its blocks may be on the ``meta`` device.
    sequences : integer tensor of shape (samples, length)
        Tokens.
    batch_size : int
        Sequences at a time.
    """
    for batch in sequences.split(batch_size):
        captured: list[Tensor] = []

        def watch(index: int, hidden: Tensor, _: Any, captured: list[Tensor] = captured) -> None:
            if index == 0:
                captured.append(hidden)

        _run(model, batch, watch)
        yield captured[0]


def block_arguments(model: PreTrainedModel, sequence: Tensor) -> list[dict[str, Any]]:
    """Return the keyword arguments with which each block is called for one sequence.

    They hold positions and masks, the same for every sequence of that length.
    """
    captured: list[dict[str, Any]] = []
    _run(model, sequence[None], lambda _, __, keywords: captured.append(keywords))
    return captured


Watch = Callable[[int, Tensor, dict[str, Any]], None]


@torch.no_grad()
def _run(model: PreTrainedModel, tokens: Tensor, watch: Watch) -> None:
    embedded = model.get_input_embeddings()(tokens.to(model.device))
    with _passed_on(model, watch):
        model.base_model(inputs_embeds=embedded.to(working_dtype(embedded.dtype)), use_cache=False)


@contextmanager
def _passed_on(model: PreTrainedModel, watch: Watch) -> Iterator[None]:
    """Have every block hand on what it is given, and say what that was."""
    blocks = blocks_of(model)

    def forward_of(index: int) -> Callable[..., Tensor]:
        def forward(hidden: Tensor, **keywords: Any) -> Tensor:
            watch(index, hidden, keywords)
            return hidden

        return forward

    try:
        for index, block in enumerate(blocks):
            block.forward = forward_of(index)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
