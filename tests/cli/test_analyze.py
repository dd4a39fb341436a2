"""The command writes a page, an advice that quantize takes, and the tensors."""

import json

import numpy as np
import pytest

from tesseral.llm import load
from tesseral.quantization.advice import Advice

OPTIONS = ("--sequences", 2, "--sequence-length", 24, "--groups", 2, "--widths", "2,4,8")


@pytest.fixture(scope="module")
def made(original, text, tmp_path_factory):
    from typer.testing import CliRunner

    from tesseral.cli.main import COMMANDS, build

    out = tmp_path_factory.mktemp("analyses") / "out"
    arguments = ["analyze", original, "--text", text, "--out", out, "--json", *OPTIONS]
    result = CliRunner().invoke(build(COMMANDS), [str(a) for a in arguments])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), out


def test_the_output_is_a_page_an_advice_and_tensors(made):
    record, out = made
    assert {file.name for file in out.iterdir()} == {"report.html", "advice.json", "tensors.npz"}
    advice = Advice.from_json((out / "advice.json").read_text())
    assert record["advice"]["layers"] == advice.layers
    assert len(advice.layers) == 2 * 7
    assert advice.weight_bits <= 4
    assert advice.activation_bits <= 4
    with np.load(out / "tensors.npz") as file:
        assert file["attention"].shape[:2] == file["head_groups"].shape == (2, 4)
        assert file["error"].shape == file["loss"].shape == (2, 7, 12)
        assert list(file["settings"][:2]) == ["weight 2 none", "weight 4 none"]
    page = (out / "report.html").read_text()
    for heading in ("Heads that are alike", "What rounding costs", "What explains", "Advised"):
        assert heading in page
    assert "<script" not in page


def test_quantize_takes_the_advice(run, made, original, text, tmp_path):
    advice = Advice.from_json((made[1] / "advice.json").read_text())
    options = ("--transform", "none", "--rounding", "nearest", "--samples", 2)
    result = run(
        "quantize", original, tmp_path / "q", "--text", text, "--sequence-length", 16,
        "--advice", made[1] / "advice.json", *options,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "mixed widths" in result.stdout
    model, _ = load(tmp_path / "q")
    for number, block in enumerate(model.model.layers):
        for name in ("q_proj", "o_proj"):
            layer = getattr(block.self_attn, name)
            assert layer.bits == advice.layers[f"{number}.{name}"]["weight_bits"]


def test_mistakes_are_one_line(refused, made, original, text, tmp_path):
    _, file = made
    common = ("analyze", original, "--text", text, "--out", tmp_path / "x")
    assert "--widths must be numbers" in refused(*common, "--widths", "two")
    assert "widths must be different numbers" in refused(*common, "--widths", "4,4")
    assert "--groups must be a number" in refused(*common, "--groups", "many")
    assert "transform must be one of" in refused(*common, "--transform", "flatquant")
    assert "cannot be met" in refused(*common, *OPTIONS, "--bits", "1.5")
    assert "exists" in refused("analyze", original, "--text", text, "--out", file)
    advice = file / "advice.json"
    taken = ("quantize", original, tmp_path / "q", "--text", text, "--advice")
    assert "leave --weight-bits out" in refused(*taken, advice, "--weight-bits", "4")
    assert "not valid JSON" in refused(*taken, text)
    assert "cannot be read" in refused(*taken, tmp_path / "missing.json")


def test_a_quantised_model_is_refused(run, refused, original, text, tmp_path):
    options = ("--transform", "none", "--rounding", "nearest", "--sequence-length", 16)
    run("quantize", original, tmp_path / "q", "--text", text, "--samples", 1, *options)
    line = refused("analyze", tmp_path / "q", "--text", text, "--out", tmp_path / "x")
    assert "is quantised already" in line
