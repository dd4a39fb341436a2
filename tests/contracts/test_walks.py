"""What README.md says of one's own data works, word for word, in an empty directory."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.pages import command_lines, run_in_order
from tesseral.cli.main import COMMANDS, build

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = re.search(r"\n## On your own data\n(.*?)\n## ", README, re.DOTALL)[1]
WALKS = dict(re.findall(r"### (.*?)\n(.*?)(?=\n### |\Z)", SECTION, re.DOTALL))


def walk(title, folder, monkeypatch):
    """Run the Python of a walk, then its commands, as a stranger would."""
    monkeypatch.chdir(folder)
    run_in_order(WALKS[title], "python", folder)
    for arguments in command_lines(WALKS[title], "tesseral"):
        result = CliRunner().invoke(build(COMMANDS), arguments)
        assert result.exit_code == 0, result.stderr
        yield result


def test_the_walks_are_those_that_are_tested():
    assert len(WALKS) == 3
    assert "serve" in next(iter(WALKS)).lower()  # tests/cli/test_serve.py


def test_people_of_a_csv_file_fall_into_their_teams(tmp_path, monkeypatch):
    list(walk("Cluster the nodes of a network", tmp_path, monkeypatch))
    lines = (tmp_path / "teams" / "labels.csv").read_text().splitlines()[1:]
    cluster = {name: number for _, name, number, _ in (line.split(",") for line in lines)}
    assert {cluster[f"red{k}"] for k in range(12)}.isdisjoint(
        {cluster[f"blue{k}"] for k in range(12)}
    )
    assert (tmp_path / "teams" / "report.html").exists()


def test_a_formula_finds_the_dose_and_not_the_age(tmp_path, monkeypatch):
    pytest.importorskip("formulaic")
    (result,) = walk("Explain a tensor by a formula", tmp_path, monkeypatch)
    assert "dose[T.low]" in result.stdout
    assert (tmp_path / "study" / "fit.npz").exists()
