"""What the commands on language models are tried on: a tiny model and a short text."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.checkpoints import TEXT, save
from support.models import tiny_llama
from tesseral.cli.main import COMMANDS, build


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    """A directory with a tiny Llama, for reading only."""
    return save(tiny_llama(), tmp_path_factory.mktemp("models") / "original")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A file of 1060 tokens, for reading only."""
    file = tmp_path_factory.mktemp("texts") / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def unreadable(tmp_path_factory) -> Path:
    """A folder of texts that cannot be used: ``short.txt``, ``latin1.txt``, ``folder``."""
    folder = tmp_path_factory.mktemp("unreadable")
    (folder / "short.txt").write_text("It was")
    (folder / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    (folder / "folder").mkdir()
    return folder


@pytest.fixture
def run():
    """Run a command line in this process and return what came of it."""

    def call(*arguments: object):
        return CliRunner().invoke(build(COMMANDS), [str(argument) for argument in arguments])

    return call


@pytest.fixture
def refused(run):
    """Run a command line that is a user's mistake, and return the one line it says."""

    def call(*arguments: object) -> str:
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        (line,) = [x for x in result.stderr.splitlines() if not x.startswith("no --text given")]
        assert line.startswith("tesseral: ")
        return line

    return call
