"""The benchmark of the machine model: the whole command, and how near it is to measurements."""

import json

import pytest
from typer.testing import CliRunner

from tesseral.bench.model.cases import Check
from tesseral.cli.main import COMMANDS, build


def run(*arguments):
    return CliRunner().invoke(build(COMMANDS), ["bench", "model", *map(str, arguments)])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return what the command prints, its numbers and its picture."""
    folder = tmp_path_factory.mktemp("model")
    result = run("--json", folder / "out.json", "--png", folder / "out.png")
    assert result.exit_code == 0, result.stderr
    return (
        result.stdout,
        json.loads((folder / "out.json").read_text(encoding="utf-8")),
        (folder / "out.png").read_bytes(),
    )


def test_predictions_are_called_so(found):
    printed, record, picture = found
    assert record["predicted"] is True
    words = " ".join(printed.split())
    assert words.count("Predicted for") == 3
    assert words.count("and predicted:") == 2
    assert "the paper says 10.7x" in words
    assert "7% off on average, 11% at most" in words
    assert picture.startswith(b"\x89PNG")


def test_our_kernels_on_the_h200_are_predicted_within_an_eighth(found):
    checks = found[1]["checks"]
    assert len(checks) == 10
    assert all(abs(row["error"]) < 0.125 for row in checks)


def test_what_is_predicted_worse_is_shown_with_its_error(found):
    errors = {row["of"]: row["error"] for row in found[1]["others"]}
    assert 0.1 < errors["unfused"] < 0.3
    assert 0.2 < errors["memory-efficient"] < 0.4


def test_two_levels_and_the_tiling_mask_are_predicted_to_pay_on_the_npu(found):
    record = found[1]
    causal = [row for row in record["npu"] if "causal" in row["case"]]
    for row in causal:
        assert row["over"]["one_level"] > 1.5
        assert row["over"]["unskipped"] > 1.4
        assert row["busiest"] == "l2"
    assert causal[0]["over"]["standard"] < 10.7 < causal[-1]["over"]["standard"]
    for row in record["npu_handover"]:
        assert row["over"]["standard"] == pytest.approx(10.6, rel=0.05)
    wide, ratio = record["v100"]
    assert wide["predicted"] == pytest.approx(wide["published"], rel=0.15)
    assert ratio["predicted"] == pytest.approx(ratio["published"], rel=0.15)


def test_an_error_is_positive_where_the_prediction_is_too_fast():
    rate = Check(case="a", of="b", measured=100.0, predicted=110.0, unit="TFLOP/s", busiest="l2")
    time = Check(case="a", of="b", measured=110.0, predicted=100.0, unit="us", busiest="far")
    assert rate.error == pytest.approx(0.1)
    assert time.error == pytest.approx(0.1)


def test_a_file_that_exists_is_not_replaced(tmp_path):
    (tmp_path / "out.json").write_text("mine")
    assert run("--json", tmp_path / "out.json").exit_code != 0
    assert (tmp_path / "out.json").read_text() == "mine"
