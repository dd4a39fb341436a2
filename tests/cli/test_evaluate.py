import json
import shutil

import pytest

from support.checkpoints import TEXT, save
from support.models import tiny_llama
from tesseral.llm import load, perplexity, quantize
from tesseral.llm.evaluate import agreement
from tesseral.llm.footprint import footprint
from tesseral.quantization import QuantizationConfig

SIZES = ("disk_bytes", "memory_bytes", "block_bytes", "cache_bytes_per_token")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, original):
    config = QuantizationConfig(transform="none", samples=1, sequence_length=16)
    return quantize(original, config, TEXT, tmp_path_factory.mktemp("quantised") / "model")


def test_perplexity_and_sizes_are_those_of_the_library(run, quantised, text):
    result = run("eval", quantised, "--text", text, "--sequence-length", 20, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    model, tokenizer = load(quantised)
    size = footprint(quantised, model)
    assert record.pop("perplexity") == perplexity(model, tokenizer, TEXT, 20)
    assert record == {
        "model": str(quantised),
        "sequence_length": 20,
        **{name: getattr(size, name) for name in SIZES},
    }


def test_against_the_original_both_are_measured(run, quantised, original, text):
    options = ("--sequence-length", 20, "--max-sequences", 3, "--against", original)
    record = json.loads(run("eval", quantised, "--text", text, *options, "--json").stdout)
    (model, tokenizer), (other, _) = load(quantised), load(original)
    found = agreement(model, other, tokenizer, TEXT, 20, max_sequences=3)
    assert record["perplexity"] == found.perplexity
    assert record["perplexity_ratio"] == found.ratio
    assert record["top1_agreement"] == found.top1
    assert record["kl_divergence"] == found.kl_divergence
    assert record["against"]["perplexity"] == found.reference_perplexity
    assert record["against"]["memory_bytes"] == footprint(original, other).memory_bytes


def test_the_table_shows_both_models(run, quantised, original, text):
    result = run("eval", quantised, "--text", text, "--max-sequences", 1, "--against", original)
    words = " ".join(result.stdout.split())
    assert f"{quantised} on {text}" in words
    for name in ("perplexity", "weights on disk", "in memory", "cache per token", "KL divergence"):
        assert f"│ {name} │" in words


def test_the_card_takes_what_was_measured(run, quantised, original, text, tmp_path):
    model = shutil.copytree(quantised, tmp_path / "model")
    options = ("--max-sequences", 2, "--sequence-length", 20, "--against", original, "--json")
    record = json.loads(run("eval", model, "--text", text, *options, "--card").stdout)
    card = (model / "README.md").read_text()
    assert f"The first 2 sequences of 20 tokens of `{text.name}`, through the packed" in card
    both = f"{record['perplexity']:.3f} | {record['against']['perplexity']:.3f}"
    assert f"| perplexity | {both} |" in card.splitlines()
    assert "|  | this | original |" in card.splitlines()
    assert str(tmp_path) not in card


def test_the_report_shows_how_flat_both_models_are(run, quantised, original, text, tmp_path):
    file = tmp_path / "report.html"
    options = ("--max-sequences", 1, "--against", original, "--report", file)
    assert run("eval", quantised, "--text", text, *options).exit_code == 0
    written = file.read_text()
    assert written.count("<svg") == 2 * 4 + 2  # activations and weights of four inputs, errors
    assert "<td>perplexity</td>" in written
    for words in ("attention_input, activations", "mlp_hidden, weights", "Error of each block"):
        assert words in written


def test_a_report_without_an_original_is_refused(refused, quantised, text, tmp_path):
    line = refused("eval", quantised, "--text", text, "--report", tmp_path / "report.html")
    assert "--report compares with the original; give --against ORIGINAL" in line
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_card_of_ours_gets_none(refused, original, text):
    line = refused("eval", original, "--text", text, "--max-sequences", 1, "--card")
    assert "is no card that this package wrote" in line
    assert not (original / "README.md").exists()


def test_the_length_that_was_used_is_the_one_reported(run, original, text):
    result = run("eval", original, "--text", text, "--sequence-length", 4096, "--json")
    assert json.loads(result.stdout)["sequence_length"] == 128


def test_without_text_the_test_excerpt_is_used_and_that_is_said(run, original, monkeypatch):
    monkeypatch.setattr("tesseral.cli.inputs.load_books_excerpt", lambda split: TEXT + split)
    result = run("eval", original)
    assert result.stderr == "no --text given: using the test excerpt in the package\n"
    assert f"{original} on the books in the package" in " ".join(result.stdout.split())


def test_the_word_embedded_is_the_model_in_the_package(run):
    result = run("eval", "embedded", "--max-sequences", 1, "--sequence-length", 16, "--json")
    record = json.loads(result.stdout)
    assert record["model"] == "embedded"
    assert record["block_bytes"] == 17_707_008


def test_the_type_asked_for_is_the_one_measured(run, original, text):
    options = ("--text", text, "--max-sequences", 2, "--json")
    whole = json.loads(run("eval", original, *options).stdout)
    half = json.loads(run("eval", original, *options, "--dtype", "bfloat16").stdout)
    assert half["memory_bytes"] < 0.6 * whole["memory_bytes"]
    assert half["perplexity"] == pytest.approx(whole["perplexity"], rel=0.02)


def test_the_bar_counts_sequences(run, original, text, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("eval", original, "--text", text, "--sequence-length", 100)
    assert "sequences" in result.stderr
    assert "10/10" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-sequences", 0], "max_sequences must be at least 1, got 0"),
        (["--sequence-length", 1], "sequence_length must be at least 2, got 1"),
        (["--dtype", "int8"], "--dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (["--device", "tablet"], "device 'tablet' cannot be used here: "),
        (["--against", "nowhere"], "nowhere: there is no such model directory"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said, refused, original, text):
    assert said in refused("eval", original, "--text", text, *options)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.txt", "missing.txt cannot be read: No such file or directory"),
        ("folder", "folder cannot be read: Is a directory"),
        ("latin1.txt", "latin1.txt is not UTF-8 text"),
        ("short.txt", "the text has 6 tokens, fewer than one sequence of 128"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(name, said, refused, original, unreadable):
    assert said in refused("eval", original, "--text", unreadable / name)


def test_a_missing_model_is_refused(refused, text, tmp_path):
    line = refused("eval", tmp_path / "nowhere", "--text", text)
    assert "nowhere: there is no such model directory" in line


def test_an_original_of_another_vocabulary_is_refused(refused, original, text, tmp_path):
    other = save(tiny_llama(vocab_size=70), tmp_path / "other")
    line = refused("eval", original, "--text", text, "--against", other)
    assert "vocabulary has 61 entries and the reference's 70" in line
