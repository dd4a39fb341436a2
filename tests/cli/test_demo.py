import json

import pytest

from support.checkpoints import TEXT, contents
from tesseral.quantization import QuantizationConfig
from tesseral.report.demo import plan as plans
from tesseral.report.demo.plan import DEMO_CONFIG, NAMES, DemoPlan


@pytest.fixture
def tiny(original, monkeypatch):
    """Let the demo work on a tiny model, and return the arguments its plan was asked for."""
    asked = []

    def plan(seed, n_seeds, samples):
        asked.append((seed, n_seeds, samples))
        return DemoPlan(
            model=original,
            calibration=TEXT,
            test=TEXT,
            config=QuantizationConfig(epochs=0, samples=1, sequence_length=16),
            seeds=tuple(range(seed, seed + n_seeds)),
            sequence_length=20,
            max_sequences=1,
            new_tokens=2,
        )

    monkeypatch.setattr(plans, "embedded_plan", plan)
    return asked


def test_tables_and_stages_are_printed_and_the_report_is_written(run, tiny, tmp_path):
    out = tmp_path / "demo"
    result = run("demo", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert tiny == [(0, 1, DEMO_CONFIG.samples)]
    words = " ".join(result.stdout.split())
    for name in NAMES.values():
        assert words.count(f"│ {name} │") == 2
    assert "FlatQuant better than Hadamard better than rounding, every seed: " in words
    assert result.stdout.endswith(f"wrote {out / 'report.html'}\n")
    lines = result.stderr.splitlines()
    assert (lines[0], len(lines)) == ("1 of 10: measuring Full precision", 10)
    assert lines[6] == "7 of 10: measuring FlatQuant"
    assert [line.partition(": ")[0] for line in lines[7:]] == ["8 of 10", "9 of 10", "10 of 10"]
    assert (out / "report.html").is_file()


@pytest.fixture
def no_charts(monkeypatch):
    """Write no charts where they are not what is tested."""
    monkeypatch.setattr("tesseral.report.demo.run.demo_page", lambda _: "")


@pytest.mark.usefixtures("no_charts")
def test_json_holds_every_number_and_where_the_report_is(run, tiny, tmp_path):
    out = tmp_path / "demo"
    result = run("demo", "--out", out, "--seed", 5, "--seeds", 2, "--samples", 8, "--json")
    record = json.loads(result.stdout)
    assert tiny == [(5, 2, 8)]
    assert record["report"] == str(out / "report.html")
    assert record["seeds"] == [5, 6]
    assert len(record["models"]) == 1 + 1 + 2 * 2
    assert set(record["summary"]) == set(NAMES)


@pytest.mark.usefixtures("no_charts")
def test_on_a_terminal_there_is_a_bar(run, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = run("demo", "--out", tmp_path / "demo")
    assert "━" in result.stderr
    assert "quantising Hadamard" in result.stderr


@pytest.mark.usefixtures("no_charts")
def test_an_existing_output_is_kept_unless_overwritten(run, refused, tiny, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine").write_text("precious")
    assert "exists; choose another output" in refused("demo", "--out", tmp_path / "demo")
    assert contents(tmp_path) == {"demo/mine": b"precious"}
    assert run("demo", "--out", tmp_path / "demo", "--overwrite").exit_code == 0
    assert not (tmp_path / "demo" / "mine").exists()


def test_ctrl_c_leaves_nothing(run, tiny, tmp_path, monkeypatch):
    def interrupt(record):
        raise KeyboardInterrupt

    monkeypatch.setattr("tesseral.report.demo.run.demo_page", interrupt)
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 130
    assert result.stderr.endswith("tesseral: interrupted; nothing was left half-written.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [("--seeds", 0), ("--seed", -1)])
def test_seeds_out_of_range_are_refused(options, refused, tmp_path):
    line = refused("demo", "--out", tmp_path / "demo", *options)
    assert "seed must be at least 0 and seeds at least 1" in line
