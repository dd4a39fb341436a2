"""What each quantised block gets wrong by itself."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral.llm.layouts import blocks_of
from tesseral.llm.text import clip_length, consecutive, tokenize


@torch.inference_mode()
def block_errors(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    sequence_length: int = 256,
    max_sequences: int = 4,
) -> list[float]:
    """Return the error of each block's output when its input is right.

    Every block of ``model`` gets the hidden states that enter the same block of
    ``reference``, so that errors do not add up from block to block.

    Parameters
    ----------
    model, reference
        A quantised model and the one it was made from, as :func:`~tesseral.llm.load` returns
        them.
    tokenizer
        Of both.
    text : str
        At least one sequence long; the first ``max_sequences`` of it are read.
    sequence_length : int
        Tokens in a sequence, clipped to the model's maximum.
    max_sequences : int
        Sequences to read.

    Returns
    -------
    list of float
        For each block, the squared error of its output relative to the output's square.

    Raises
    ------
    DataError
        If the text is shorter than one sequence.
    """
    length = clip_length(model, sequence_length)
    sequences = consecutive(tokenize(model, tokenizer, text), length)[:max_sequences]
    sums = [[0.0, 0.0] for _ in blocks_of(model)]
    with ExitStack() as stack:
        for pair in zip(blocks_of(reference), blocks_of(model), sums, strict=True):
            original, block, total = pair
            hook = original.register_forward_hook(_comparison(block, total), with_kwargs=True)
            stack.callback(hook.remove)
        for sequence in sequences.to(reference.device):
            reference(sequence[None], use_cache=False)
    return [error / power for error, power in sums]


def _comparison(block: nn.Module, total: list[float]) -> Callable[..., None]:
    """Return a hook that runs ``block`` beside the original and sums up error and power."""

    def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], right: Tensor) -> None:
        total[0] += float((block(*inputs, **options) - right).double().square().sum())
        total[1] += float(right.double().square().sum())

    return hook
