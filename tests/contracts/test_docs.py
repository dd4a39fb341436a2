"""What the pages in docs/ show runs, and what they name exists."""

import tomllib
from pathlib import Path

import pytest
import typer.main

from support.pages import blocks, command_lines, languages, named, run_in_order, unknown_names
from tesseral.cli.main import COMMANDS, build

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXTS = {page.relative_to(DOCS).as_posix(): page.read_text("utf-8") for page in DOCS.rglob("*.md")}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]


def pages_with(language):
    return sorted(name for name, text in TEXTS.items() if blocks(text, language))


@pytest.mark.parametrize("name", pages_with("python"))
def test_the_examples_of_a_page_run_one_after_the_other(name, tmp_path):
    run_in_order(TEXTS[name], "python", tmp_path)


@pytest.mark.parametrize("name", pages_with("{code-cell}"))
def test_a_notebook_runs(name, tmp_path):
    run_in_order(TEXTS[name], "{code-cell}", tmp_path)


@pytest.mark.parametrize("name", pages_with("console"))
def test_every_command_line_is_understood(name):
    application = typer.main.get_command(build(COMMANDS))
    for command, *arguments in command_lines(TEXTS[name], "tesseral"):
        # reads the arguments and refuses what it does not know, but runs nothing
        application.commands[command].make_context(command, arguments)
    for _, target in command_lines(TEXTS[name], "pip"):
        assert target in {".", *(f".[{extra}]" for extra in EXTRAS)}


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_command_named_exists(name):
    assert named(TEXTS[name], "tesseral") <= set(COMMANDS)


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_every_block_says_what_it_is(name):
    known = {"python", "console", "text"}
    assert [word for word in languages(TEXTS[name]) if word not in known and word[:1] != "{"] == []


@pytest.mark.parametrize("name", pages_with("text"))
def test_what_blocks_that_are_not_run_import_exists(name):
    assert unknown_names(TEXTS[name]) == []


def test_every_public_name_is_in_the_reference():
    for room in ("attention", "cluster", "core", "datasets", "llm", "quantization", "regress"):
        module = __import__(f"tesseral.{room}", fromlist=["__all__"])
        listed = {line.strip() for line in TEXTS[f"api/{room}.md"].splitlines()}
        left_out = set(module.__all__) - listed
        assert left_out <= {"TesseralConfig", "TesseralQuantizer"}  # transformers' hooks
