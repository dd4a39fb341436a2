"""What README.md shows runs, and what README.md and its companions name exists."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from tesseral.cli.main import COMMANDS, build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "src/tesseral").glob("*/README.md")],
    key=lambda page: page.as_posix(),
)


def blocks(text, language):
    """Return the lines of every fenced block in a language, with their line numbers from 1."""
    found, inside = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            inside = None if inside is not None else line[3:].strip()
        elif inside == language:
            found.append((number, line))
    return found


def command_lines(text, program):
    """Return every call of a program in a console block, without its comment."""
    lines = [shlex.split(line, comments=True) for _, line in blocks(text, "console")]
    return [words[1:] for words in lines if words and words[0] == program]


def named(text, program):
    """Return every name that stands after a program in a console block or inside backticks."""
    quoted = re.findall(rf"`{program} ([a-z]\w*)[^`]*`", text)
    return {*quoted, *(words[0] for words in command_lines(text, program))}


def test_the_python_examples_run_one_after_the_other(tmp_path):
    """Each line keeps its number, so that a traceback points into README.md."""
    lines = dict(blocks(README, "python"))
    assert lines
    script = tmp_path / "README.py"
    script.write_text("\n".join(lines.get(n, "") for n in range(1, max(lines) + 1)), "utf-8")
    result = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "SKBUILD_EDITABLE_VERBOSE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    printed = iter(result.stdout.splitlines())
    for promised in re.findall(r"^print\(.*\)  # (.+)$", "\n".join(lines.values()), re.MULTILINE):
        assert promised in printed, f"{promised!r} is not in its place in:\n{result.stdout}"


def test_every_command_line_is_understood():
    application = typer.main.get_command(build(COMMANDS))
    calls = command_lines(README, "tesseral")
    assert {name for name, *_ in calls} == set(COMMANDS)
    for name, *arguments in calls:
        # reads the arguments and refuses what it does not know, but runs nothing
        application.commands[name].make_context(name, arguments)


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
