import json

import pytest

from tesseral.cli.console import print_json, print_table, progress


def test_numbers_that_json_lacks_become_null(capsys):
    print_json({"perplexity": [1.5, float("inf")], "nested": {"loss": float("nan")}, "n": 3})
    assert json.loads(capsys.readouterr().out) == {
        "perplexity": [1.5, None],
        "nested": {"loss": None},
        "n": 3,
    }


def test_progress_shows_nothing_when_stderr_is_not_a_terminal(capsys):
    with progress() as bars:
        bars.update(bars.add_task("working", total=2), advance=1)
    assert capsys.readouterr() == ("", "")


def test_progress_shows_on_a_terminal_and_leaves_stdout_alone(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as bars:
        bars.update(bars.add_task("working", total=2), advance=1)
    out, err = capsys.readouterr()
    assert "working" in err
    assert out == ""


def test_a_table_keeps_brackets_and_long_cells(capsys):
    cell = "pip install 'tesseral[torch]' " + "x" * 70
    print_table("Extras [all]", ["name", "what"], [["torch", cell]])
    out = capsys.readouterr().out
    assert "Extras [all]" in out
    assert cell in out


@pytest.mark.parametrize("record", [{"path": object()}])
def test_what_json_cannot_say_is_an_error(record):
    with pytest.raises(TypeError, match="not JSON serializable"):
        print_json(record)
