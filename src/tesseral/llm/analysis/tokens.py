"""What kinds of tokens a text is made of, by how they are written."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase as Tokenizer

CLASSES = ("word", "rest of word", "number", "punctuation", "space")
"""A word's first token and its others, digits, other signs, and blanks or nothing at all."""

_BEFORE_WORDS = ("Ġ", "▁", " ")
"""How tokenizers write the blank before a word."""


def token_classes(tokenizer: Tokenizer, tokens: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of every token's class in :data:`CLASSES`."""
    distinct, places = np.unique(np.asarray(tokens, dtype=np.int64), return_inverse=True)
    found = [CLASSES.index(_class(tokenizer, int(token))) for token in distinct]
    return np.asarray(found, dtype=np.int64)[places]


def _class(tokenizer: Tokenizer, token: int) -> str:
    piece = str(tokenizer.convert_ids_to_tokens(token))
    text = str(tokenizer.decode([token])).strip()
    if not text:
        return "space"
    if text[0].isdigit():
        return "number"
    if text[0].isalpha():
        return "word" if piece.startswith(_BEFORE_WORDS) else "rest of word"
    return "punctuation"
