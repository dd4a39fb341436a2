"""Text becomes sequences of tokens, or one clear error."""

import pytest
import torch

from support.checkpoints import TEXT, tokenizer
from support.models import tiny_llama
from tesseral._errors import CheckpointError, DataError, ParameterError
from tesseral.llm.text import clip_length, consecutive, sample, tokenize

TOKENS = torch.arange(100)


def test_tokens_are_those_of_the_tokenizer_without_special_ones():
    tokens = tokenize(tiny_llama(), tokenizer(), "It was.")
    assert tokens.dtype == torch.long
    assert tokens.tolist() == tokenizer().convert_tokens_to_ids(list("It was."))


def test_a_long_text_warns_of_nothing(said):
    # the model holds 128 positions, of which the tokenizer may know
    reader = tokenizer()
    reader.model_max_length = 128
    assert len(tokenize(tiny_llama(), reader, TEXT)) == len(TEXT)
    assert said() == ""


def test_an_empty_text_has_no_tokens():
    assert tokenize(tiny_llama(), tokenizer(), "").shape == (0,)


def test_a_tokenizer_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match="token 69 but the model's vocabulary has 61 entries"):
        tokenize(tiny_llama(), tokenizer(70), "page 8")


@pytest.mark.parametrize(("asked", "given"), [(2, 2), (128, 128), (129, 128), (10**6, 128)])
def test_a_length_is_clipped_to_the_models_positions(asked, given):
    assert clip_length(tiny_llama(), asked) == given


@pytest.mark.parametrize("length", [1, 0, -5])
def test_a_length_that_predicts_nothing_is_refused(length):
    with pytest.raises(ParameterError, match=f"sequence_length must be at least 2, got {length}"):
        clip_length(tiny_llama(), length)


def test_sequences_follow_one_another_and_a_rest_is_dropped():
    sequences = consecutive(TOKENS, 30)
    assert torch.equal(sequences.flatten(), TOKENS[:90])
    assert sequences.shape == (3, 30)
    assert consecutive(TOKENS, 100).shape == (1, 100)


def test_samples_are_pieces_of_the_text_fixed_by_the_seed():
    pieces = sample(TOKENS, 30, 64, seed=3)
    assert pieces.shape == (64, 30)
    assert (pieces.diff(dim=1) == 1).all()
    assert torch.equal(pieces, sample(TOKENS, 30, 64, seed=3))
    assert not torch.equal(pieces, sample(TOKENS, 30, 64, seed=4))
    starts = sample(TOKENS, 99, 64, seed=0)[:, 0]
    assert set(starts.tolist()) == {0, 1}  # the last place a sequence can start counts too


def test_a_text_of_one_sequence_is_enough():
    assert torch.equal(sample(TOKENS, 100, 2, seed=0), TOKENS.expand(2, 100))


@pytest.mark.parametrize("cut", [lambda t: consecutive(t, 101), lambda t: sample(t, 101, 1, 0)])
def test_a_text_shorter_than_a_sequence_is_refused(cut):
    with pytest.raises(DataError, match="has 100 tokens, fewer than one sequence of 101; give a"):
        cut(TOKENS)
