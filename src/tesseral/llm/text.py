"""Turning text into token sequences for calibration and evaluation."""

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral._errors import CheckpointError, DataError, ParameterError


def tokenize(model: PreTrainedModel, tokenizer: Tokenizer, text: str) -> Tensor:
    """Return the tokens of a text, without special tokens.

    Raises
    ------
    CheckpointError
        If the tokenizer knows more tokens than the model.
    """
    tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    vocabulary = model.get_input_embeddings().num_embeddings
    if tokens and max(tokens) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer gives token {max(tokens)} but the model's vocabulary has "
            f"{vocabulary} entries; they do not belong together."
        )
    return torch.tensor(tokens, dtype=torch.long)


def clip_length(model: PreTrainedModel, sequence_length: int) -> int:
    """Return a sequence length that the model's positions allow.

    Raises
    ------
    ParameterError
        If it is below 2: nothing would be predicted.
    """
    if sequence_length < 2:
        raise ParameterError(f"sequence_length must be at least 2, got {sequence_length}.")
    limit: int = model.config.get_text_config().max_position_embeddings
    return min(sequence_length, limit)


def consecutive(tokens: Tensor, sequence_length: int) -> Tensor:
    """Cut tokens into sequences that follow one another; a shorter rest is dropped.

    Raises
    ------
    DataError
        If there is not one whole sequence.
    """
    _refuse_short(tokens, sequence_length)
    count = len(tokens) // sequence_length
    return tokens[: count * sequence_length].reshape(count, sequence_length)


def sample(tokens: Tensor, sequence_length: int, count: int, seed: int) -> Tensor:
    """Draw sequences that start at random places.

    Raises
    ------
    DataError
        If there is not one whole sequence.
    """
    _refuse_short(tokens, sequence_length)
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, len(tokens) - sequence_length + 1, (count,), generator=generator)
    return torch.stack([tokens[s : s + sequence_length] for s in starts.tolist()])


def _refuse_short(tokens: Tensor, sequence_length: int) -> None:
    if len(tokens) < sequence_length:
        raise DataError(
            f"the text has {len(tokens)} tokens, fewer than one sequence of {sequence_length}; "
            "give a longer text or a smaller sequence length."
        )
