"""Pieces of text are what all tokens decode to, up to the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseral.datasets import load_embedded_lm
from tesseral.llm import load
from tesseral.llm.serving_text import TextPieces

TEXTS = ["The old man opened the door.", "naïve café — 東京 🙂!", "  two  spaces\n\n", "ababab"]


@pytest.fixture(scope="module")
def words():
    return load(load_embedded_lm())[1]


def pieces_of(tokenizer, tokens, *options, **more):
    pieces = TextPieces(tokenizer, *options, **more)
    return pieces, [*map(pieces.feed, tokens), pieces.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text(words, text):
    tokens = words(text, add_special_tokens=False)["input_ids"]
    _, got = pieces_of(words, tokens)
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)
    assert sum(map(bool, got)) > 2


def test_half_a_character_is_handed_out_at_the_end(words):
    tokens = words("🙂", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 1
    _, got = pieces_of(words, tokens[:-1])
    assert set("".join(got)) == {"\ufffd"}


def test_special_tokens_give_text_only_if_asked_for(words):
    tokens = [words.eos_token_id, *words("door", add_special_tokens=False)["input_ids"]]
    assert "".join(pieces_of(words, tokens)[1]) == "door"
    shown = "".join(pieces_of(words, tokens, skip_special_tokens=False)[1])
    assert shown == words.eos_token + "door"


class Letters:
    """A tokenizer of which each token is a letter."""

    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))


class Words:
    """A tokenizer that puts spaces between words, as many do."""

    def decode(self, tokens, **_):
        return " ".join(["one", "two", "three"][token] for token in tokens)


def test_spaces_between_tokens_are_kept():
    _, got = pieces_of(Words(), [0, 1, 2, 1])
    assert got == ["one", " two", " three", " two", ""]


def test_of_two_stop_strings_the_one_that_begins_first_counts():
    pieces, got = pieces_of(Letters(), map(ord, "xabc"), ["b", "ab"])
    assert ("".join(got), pieces.stopped) == ("x", True)


@settings(deadline=None)
@given(
    text=st.text("ab", max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string(text, stops):
    pieces, got = pieces_of(Letters(), map(ord, text), stops)
    ends = [text.find(stop) for stop in stops if stop in text]
    if not pieces.stopped:
        assert not ends
        assert "".join(got) == text
        return
    # of several that begin before one is whole, the one that is whole first
    whole = min(text.find(stop) + len(stop) for stop in stops if stop in text)
    expected = min(text.find(stop, 0, whole) for stop in stops if stop in text[:whole])
    assert "".join(got) == text[:expected]


def test_what_may_begin_a_stop_string_waits():
    pieces = TextPieces(Letters(), ["</s>"])
    assert [pieces.feed(ord(letter)) for letter in "a<b</s"] == ["a", "", "<b", "", "", ""]
    assert pieces.finish() == "</s"
