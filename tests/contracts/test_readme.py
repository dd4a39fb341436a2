"""What README.md shows runs, and what README.md and its companions name exists."""

import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from support.pages import command_lines, languages, named, run_in_order, unknown_names
from tesseral.cli.main import COMMANDS, build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "src/tesseral").glob("*/README.md")],
    key=lambda page: page.as_posix(),
)


def test_the_python_examples_run_one_after_the_other(tmp_path):
    run_in_order(README, "python", tmp_path)


def test_every_command_line_is_understood():
    application = typer.main.get_command(build(COMMANDS))
    calls = command_lines(README, "tesseral")
    assert {name for name, *_ in calls} == set(COMMANDS)
    for name, *arguments in calls:
        # reads the arguments and refuses what it does not know, but runs nothing
        application.commands[name].make_context(name, arguments)


def test_every_block_says_what_it_is_and_imports_what_there_is():
    assert set(languages(README)) <= {"python", "console", "text"}
    assert unknown_names(README) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_target_and_path_named_exists(page):
    text = page.read_text(encoding="utf-8")
    assert named(text, "tesseral") <= set(COMMANDS)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert named(text, "make") <= set(targets)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_extras_to_install_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    shown = [
        re.fullmatch(r"\.(?:\[(.+)\])?", words[-1])[1] for words in command_lines(README, "pip")
    ]
    assert {extra for extra in shown if extra} <= set(extras)
    assert None in shown, "the base install is shown too"
