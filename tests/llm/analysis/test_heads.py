"""What heads look at is what their attention weights say, and heads alike are grouped."""

import numpy as np
import pytest
import torch

from support.checkpoints import tokenizer
from support.models import tiny_gemma2, tiny_llama, tiny_mixtral
from tesseral.llm.analysis.heads import (
    NEAR,
    PLACES,
    HeadStatistics,
    group_heads,
    head_statistics,
)
from tesseral.llm.analysis.tokens import CLASSES, token_classes

LENGTH = 20
SEQUENCES = torch.randint(1, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0))
KINDS = np.random.default_rng(1).choice([0, 1, 3], (2, LENGTH))


def test_tokens_are_classed_by_how_they_are_written():
    table = {"G": "rest of word", " ": "space", "7": "number", "!": "punctuation"}
    pieces = tokenizer(size=100)
    ids = [pieces.convert_tokens_to_ids(c) for c in table]
    assert [CLASSES[c] for c in token_classes(pieces, ids)] == list(table.values())


def test_a_token_with_a_blank_before_it_begins_a_word():
    class Pieces:
        def convert_ids_to_tokens(self, token):
            return ["Ġcat", "▁cat", "cat", "▁", "Ċ"][token]

        def decode(self, tokens):
            return [" cat", " cat", "cat", " ", "\n"][tokens[0]]

    found = [CLASSES[c] for c in token_classes(Pieces(), [0, 1, 2, 3, 4])]
    assert found == ["word", "word", "rest of word", "space", "space"]


@pytest.mark.parametrize("build", [tiny_llama, tiny_gemma2, tiny_mixtral])
def test_statistics_are_those_of_the_weights(build):
    model = build("tesseral").eval()
    found = head_statistics(model, SEQUENCES, KINDS)
    assert model.config._attn_implementation == "tesseral"
    assert found.values.shape == (2, 4, 3, len(PLACES) + 3)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = [
            w.double().numpy()
            for w in model(SEQUENCES, output_attentions=True, use_cache=False).attentions
        ]
    kind = KINDS.copy()
    kind[:, 0] = -1
    for layer, head, number in ((0, 1, 0), (1, 3, 2)):
        rows = [
            (weights[layer][n, head, q], kind[n], q)
            for n, q in zip(*np.nonzero(kind == (0, 1, 3)[number]), strict=True)
        ]
        expected = np.mean(
            [
                [
                    -(a[a > 0] * np.log(a[a > 0])).sum() / np.log(q + 1),
                    a[0],
                    a[q],
                    a[q - 1],
                    a[max(0, q - NEAR + 1) : q + 1].sum(),
                    *(a[own == c].sum() for c in (0, 1, 3)),
                ]
                for a, own, q in rows
            ],
            axis=0,
        )
        np.testing.assert_allclose(found.values[layer, head, number], expected, atol=1e-6)


def test_classes_that_the_text_lacks_are_left_out():
    found = head_statistics(tiny_llama().eval(), SEQUENCES, KINDS)
    assert found.classes == ("word", "rest of word", "punctuation")
    assert found.statistics[len(PLACES) :] == ("on word", "on rest of word", "on punctuation")


def planted(labels, noise=0.01):
    """Heads of three kinds, each with a profile of its own and a size of its own."""
    rng = np.random.default_rng(0)
    profiles = rng.uniform(0.05, 1, (3, 4, 7))
    sizes = rng.uniform(0.5, 1, labels.shape)
    values = sizes[..., None, None] * profiles[labels]
    values += noise * rng.standard_normal(values.shape)
    names = tuple(f"s{k}" for k in range(7))
    return HeadStatistics(values=values, classes=("a", "b", "c", "d"), statistics=names)


def test_heads_of_one_profile_are_one_group_whatever_their_size():
    labels = np.arange(32).reshape(4, 8) % 3
    found = group_heads(planted(labels), 3)
    pairs = {(a, b) for a, b in zip(labels.ravel(), found.labels.ravel(), strict=True)}
    assert len(pairs) == 3
    assert found.bic_path == {}
    assert found.means.shape == (3, 7)


def test_the_criterion_finds_how_many_groups_there_are():
    labels = np.arange(32).reshape(4, 8) % 3
    found = group_heads(planted(labels))
    assert min(found.bic_path, key=found.bic_path.get) == 3
    assert len(found.names) == 3
