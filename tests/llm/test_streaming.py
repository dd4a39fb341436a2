"""Text is handed on while it is generated."""

import pytest

from support.checkpoints import tokenizer
from support.models import tiny_llama
from tesseral.datasets import load_embedded_lm
from tesseral.llm import generate, load
from tesseral.llm.streaming import TextWriter


@pytest.mark.parametrize("count", [1, 12])
def test_the_pieces_are_the_text(count):
    pieces, model = [], tiny_llama("tesseral")
    writer = TextWriter(tokenizer(), pieces.append)
    text = generate(model, tokenizer(), "It was", max_new_tokens=count, streamer=writer)
    assert "".join(pieces) == text
    assert writer.n_tokens == count


def test_words_come_one_by_one():
    model, words = load(load_embedded_lm())
    pieces = []
    writer = TextWriter(words, pieces.append)
    text = generate(model, words, "The old man opened", max_new_tokens=12, streamer=writer)
    assert "".join(pieces) == text
    assert len(pieces) > 4
    assert "" not in pieces
