"""The card says what was done and measured, and nothing that was not."""

import pytest

from support.checkpoints import TEXT
from tesseral._errors import CheckpointError
from tesseral.llm import quantize
from tesseral.llm.card import model_card, write_measured
from tesseral.llm.footprint import disk_bytes
from tesseral.quantization import QuantizationConfig

COLUMNS, ROWS = ["", "this"], [["perplexity", "29.1"]]


def test_widths_sizes_and_losses_are_there():
    config = QuantizationConfig(weight_bits=3, kv_bits=8, value_bits=2, rounding="gptq")
    card = model_card("tiny", config, [{"loss": "0.25"}, {}], (12_000, 3_400))
    assert "Weights in 3 bits" in card
    assert "cached keys in 8 and values in 2;" in card
    assert "rounded by `gptq`" in card
    for line in ('base_model: "tiny"', "| 0 | 0.25000 |", "| 1 |  |", "| original | 12,000 |"):
        assert line in card.splitlines()


def test_without_learning_there_is_no_table_of_losses():
    assert "loss" not in model_card("tiny", QuantizationConfig(transform="none"), [{}], (2, 1))


def test_a_quantised_model_has_a_card_and_what_is_measured_replaces_what_was(original, tmp_path):
    config = QuantizationConfig(epochs=1, samples=2, sequence_length=16)
    out = quantize(original, config, TEXT, tmp_path / "out")
    before = (out / "README.md").read_text()
    assert f"| this | {disk_bytes(out):,} |" in before
    assert f'base_model: "{original.name}"' in before
    for words in ("First.", "Second."):
        write_measured(out, words, COLUMNS, ROWS)
    after = (out / "README.md").read_text()
    assert after.startswith(before[: before.index("Nothing yet")])
    assert after.endswith(
        "## Measured\n\nSecond.\n\n|  | this |\n| --- | --- |\n| perplexity | 29.1 |\n"
    )
    assert "First" not in after


@pytest.mark.parametrize("text", [None, "# Mine\n"])
def test_a_card_that_is_not_ours_stays_as_it_is(tmp_path, text):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    with pytest.raises(CheckpointError, match=r"is no card that this package wrote"):
        write_measured(tmp_path, "First.", COLUMNS, ROWS)
    if text is not None:
        assert (tmp_path / "README.md").read_text() == text
