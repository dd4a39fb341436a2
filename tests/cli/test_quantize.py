import json
import re
import shutil

import pytest
import torch
from typer.testing import CliRunner

from support.checkpoints import TEXT, change_config, contents, save
from support.models import tiny_bert, tiny_mixtral
from tesseral.cli import quantize as command
from tesseral.cli.console import progress
from tesseral.cli.main import COMMANDS, build
from tesseral.llm import load
from tesseral.llm.footprint import disk_bytes
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.calibration.task import CalibrationStep
from tesseral.quantization.config import FAST

SETTINGS = (
    *("weight_bits", "activation_bits", "kv_bits", "key_bits", "value_bits"),
    *("transform", "epochs", "batch_size"),
    *("samples", "sequence_length", "learning_rate", "clip_learning_rate", "seed"),
)
NEEDS = re.compile(r"needs at most [0-9.]+ MB of memory and [0-9.]+ kB on disk")
QUICK = ("--epochs", 1, "--samples", 2, "--sequence-length", 16)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, original, text):
    """A model that the command quantised, and what it printed."""
    out = tmp_path_factory.mktemp("quantised") / "model"
    arguments = ["quantize", original, out, "--text", text, *QUICK, "--kv-bits", 3, "--json"]
    result = CliRunner().invoke(build(COMMANDS), list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    return out, json.loads(result.stdout)


def test_the_output_is_a_model_with_the_settings_asked_for(quantised):
    out, record = quantised
    model, _ = load(out)
    settings = model.config.quantization_config.settings
    asked = {"epochs": 1, "samples": 2, "sequence_length": 16, "kv_bits": 3}
    assert settings == QuantizationConfig(**asked)
    assert record["config"] == settings.to_dict()


def test_the_record_says_where_how_large_and_how_good(quantised, original):
    out, record = quantised
    assert record["path"] == str(out)
    assert record["disk_bytes_before"] == disk_bytes(original)
    assert record["disk_bytes"] == disk_bytes(out)
    assert record["elapsed_s"] > 0
    assert list(record["losses"]) == ["0", "1"]
    assert all(loss > 0 for loss in record["losses"].values())
    assert record["rare_experts"] == {}


def test_without_json_it_ends_with_one_line(run, original, text, tmp_path):
    out = tmp_path / "out"
    result = run("quantize", original, out, "--text", text, "--transform", "none", *QUICK)
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"wrote {out}: W4A4KV4 with transform none, weights ")
    assert NEEDS.fullmatch(result.stderr.strip())


def test_keys_and_values_may_have_widths_of_their_own(run, original, text, tmp_path):
    out, widths = tmp_path / "out", ("--key-bits", 2, "--value-bits", 8)
    result = run("quantize", original, out, "--text", text, "--transform", "none", *QUICK, *widths)
    assert result.stdout.startswith(f"wrote {out}: W4A4K2V8 with transform none, weights ")
    assert load(out)[0].config.quantization_config.settings.cache_bits == (2, 8)


def test_each_block_has_a_line_with_its_loss_its_time_and_what_is_left(
    run, original, text, tmp_path
):
    result = run("quantize", original, tmp_path / "out", "--text", text, *QUICK, "--json")
    needs, first, last = result.stderr.splitlines()
    assert NEEDS.fullmatch(needs)
    losses = json.loads(result.stdout)["losses"]
    assert re.fullmatch(
        rf"block 1 of 2: loss {losses['0']:.5f}, [0-9.]+ s, about [0-9.]+ s left", first
    )
    assert re.fullmatch(rf"block 2 of 2: loss {losses['1']:.5f}, [0-9.]+ s", last)


def test_what_is_left_does_not_count_blocks_that_were_done_before(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 11.0, 21.0])
    monkeypatch.setattr(command, "monotonic", lambda: next(clock))
    with progress() as bars:
        bar = command.BlockBar(bars)
        bar.advance(step(0, None, 0, 0))
        bar.advance(step(1, 0.5, 1, 1))
        bar.advance(step(2, 0.25, 1, 1))
        bar.finish()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "block 2 of 4: loss 0.50000, 10 s, about 20 s left"
    assert last == "block 3 of 4: loss 0.25000, 10 s, about 10 s left"


def step(block, loss, epoch, n_epochs):
    return CalibrationStep(block=block, n_blocks=4, epoch=epoch, n_epochs=n_epochs, loss=loss)


def test_fast_changes_what_was_not_given():
    got = command.configuration(None, {"samples": 3, "seed": None}, fast=True)
    assert got == QuantizationConfig(**FAST | {"samples": 3})


def test_experts_that_few_tokens_chose_are_named(run, text, tmp_path):
    model = tiny_mixtral()
    for block in model.model.layers:
        # scores s, -s, 2s, 0, -2s: the fourth expert is never among the two best
        router = block.mlp.gate.weight
        router.data = torch.tensor([1.0, -1.0, 2.0, 0.0, -2.0])[:, None] * router.data[0]
    source = save(model, tmp_path / "model")
    result = run("quantize", source, tmp_path / "out", "--text", text, *QUICK)
    assert result.stderr.splitlines()[-2:] == [
        f"block {block}: few calibration tokens chose expert 3; a longer or more varied text may "
        "help them"
        for block in (1, 2)
    ]


def test_without_text_the_excerpt_is_used_and_that_is_said(run, original, tmp_path, monkeypatch):
    monkeypatch.setattr("tesseral.cli.inputs.load_books_excerpt", lambda split: TEXT + split)
    result = run("quantize", original, tmp_path / "out", "--transform", "none", *QUICK)
    assert result.exit_code == 0
    first, needs = result.stderr.splitlines()
    assert first == "no --text given: using the calibration excerpt in the package"
    assert NEEDS.fullmatch(needs)


def test_the_bar_shows_each_block_with_its_loss(run, original, text, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("quantize", original, tmp_path / "out", "--text", text, *QUICK)
    assert "block 2 of 2, loss 0." in result.stderr
    assert "2/2" in result.stderr


def test_options_default_to_the_configurations_own():
    assert command.configuration(None, {"seed": None}) == QuantizationConfig()


def test_the_help_shows_those_defaults(run):
    words = " ".join(run("quantize", "--help").stdout.split())
    shown = dict(re.findall(r"--([a-z-]+) <\w+> [^<]*?\[default: \((.*?)\)\]", words))
    defaults = QuantizationConfig().to_dict()
    settings = {name: shown[name.replace("_", "-")] for name in SETTINGS}
    expected = {name: defaults[name] for name in SETTINGS}
    assert settings == {name: "none" if x is None else str(x) for name, x in expected.items()}


def test_options_override_the_file(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"kv_bits": 8, "key_bits": 2, "seed": 3}))
    got = command.configuration(file, {"seed": 0, "epochs": None})
    assert got == QuantizationConfig(kv_bits=8, key_bits=2, seed=0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weight-bits", 1], "weight_bits must be 2 to 8, or 16 for off, got 1"),
        (["--activation-bits", 9], "activation_bits must be 2 to 8, or 16 for off, got 9"),
        (["--kv-bits", 0], "kv_bits must be 2 to 8, or 16 for off, got 0"),
        (["--transform", "warp"], "transform must be one of 'none', 'hadamard', 'flatquant'"),
        (["--epochs", -1], "epochs must be an integer of at least 0, got -1"),
        (["--samples", 0], "samples must be an integer of at least 1, got 0"),
        (["--batch-size", 0], "batch_size must be an integer of at least 1, got 0"),
        (["--sequence-length", 1], "sequence_length must be an integer of at least 2, got 1"),
        (["--seed", -1], "seed must be an integer of at least 0, got -1"),
        (["--learning-rate", "nan"], "learning_rate must be positive and finite, got nan"),
        (["--clip-learning-rate", 0], "clip_learning_rate must be positive and finite, got 0.0"),
        (["--device", "tablet"], "device 'tablet' cannot be used here: "),
    ],
)
def test_settings_out_of_range_are_refused(options, said, refused, original, text, tmp_path):
    out = tmp_path / "out"
    assert said in refused("quantize", original, out, "--text", text, *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[4]", "expected a JSON object, got list"),
        (b'{"weight_bit": 4}', "unknown key 'weight_bit'"),
        (b"\xff", "is not UTF-8 text: byte 0 cannot be read"),
    ],
)
def test_a_file_of_settings_that_is_none_is_refused(written, said, refused, original, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(written)
    assert said in refused("quantize", original, tmp_path / "out", "--config", file)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.txt", "missing.txt cannot be read: No such file or directory"),
        ("folder", "folder cannot be read: Is a directory"),
        ("latin1.txt", "latin1.txt is not UTF-8 text: byte 2 cannot be read; convert it first"),
        ("short.txt", "the text has 6 tokens, fewer than one sequence of 128"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused(name, said, refused, original, tmp_path, unreadable):
    out = tmp_path / "out"
    assert said in refused("quantize", original, out, "--text", unreadable / name)
    assert not out.exists()


def test_a_missing_model_is_refused(refused, text, tmp_path):
    line = refused("quantize", tmp_path / "nowhere", tmp_path / "out", "--text", text)
    assert "nowhere: there is no such model directory" in line


def test_a_model_that_is_quantised_already_is_refused(refused, quantised, text, tmp_path):
    line = refused("quantize", quantised[0], tmp_path / "out", "--text", text)
    assert "is quantised already" in line


def test_an_unknown_architecture_is_refused(refused, text, tmp_path):
    path = save(tiny_bert(), tmp_path / "bert")
    assert "'bert' is not supported" in refused("quantize", path, tmp_path / "out", "--text", text)


def test_an_existing_output_is_kept_unless_overwritten(run, refused, original, text, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    arguments = ("quantize", original, out, "--text", text, "--transform", "none", *QUICK)
    assert "exists; choose another output" in refused(*arguments)
    assert contents(out) == {"precious.txt": b"mine"}
    assert run(*arguments, "--overwrite").exit_code == 0
    assert (out / "config.json").is_file()
    assert not (out / "precious.txt").exists()


def test_ctrl_c_leaves_no_output(run, original, text, tmp_path, monkeypatch):
    def interrupt(self, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.BlockBar, "advance", interrupt)
    out = tmp_path / "out"
    result = run("quantize", original, out, "--text", text, *QUICK)
    assert result.exit_code == 130
    needs, last = result.stderr.splitlines()
    assert NEEDS.fullmatch(needs)
    assert last == "tesseral: interrupted; nothing was left half-written."
    assert not out.exists()


def test_a_damaged_model_is_refused(refused, original, text, tmp_path):
    path = shutil.copytree(original, tmp_path / "model")
    change_config(path, hidden_size=64)
    assert "the weights do not fit config.json" in refused(
        "quantize", path, tmp_path / "out", "--text", text
    )


def test_a_missing_extra_says_what_to_install(refused, original, text, tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("tesseral.runtime.extras.importlib.import_module", missing)
    line = refused("quantize", original, tmp_path / "out", "--text", text)
    assert "tesseral quantize needs torch, which is not installed" in line
    assert "pip install 'tesseral[llm]'" in line
