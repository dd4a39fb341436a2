"""What users notice is told in fragments, and the release notes are made of them."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAGMENTS = sorted(set((ROOT / "changes").iterdir()) - {ROOT / "changes/README.md"})
KINDS = [
    kind["directory"]
    for kind in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["towncrier"][
        "type"
    ]
]


@pytest.fixture
def notes(tmp_path):
    """A function that makes release notes in a copy, with fragments of one's own."""
    pytest.importorskip("towncrier")
    (tmp_path / "changes").mkdir()
    for name in ("pyproject.toml", "CHANGELOG.md", "changes/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)

    def make(*words, **fragments):
        for name, text in fragments.items():
            (tmp_path / "changes" / name).write_text(text, "utf-8")
        command = [sys.executable, "-m", "towncrier", "build", "--version", "9.8.7", *words]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        return run.returncode, run.stdout + run.stderr

    return make


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_a_fragment_is_a_sentence_without_a_bullet(path):
    text = path.read_text("utf-8")
    assert text[:1].isupper() or text[:1] == "`"
    assert text.rstrip().endswith(".")
    assert path.name.endswith(tuple(f".{kind}.md" for kind in KINDS))


@pytest.mark.parametrize("name", ["words.fix.md", "+words.fixed.md", "+words.md"])
def test_other_names_are_refused(notes, name):
    code, message = notes("--draft", **{name: "It works."})
    assert code != 0
    assert name.split(".", maxsplit=1)[0] in message


def test_the_notes_go_above_those_of_before(notes, tmp_path):
    code, message = notes("--keep", **{"+one.speed.md": "It is fast.", "12.fix.md": "It works."})
    assert code == 0, message
    text = (tmp_path / "CHANGELOG.md").read_text("utf-8")
    order = ("# Changelog", "## 9.8.7 (", "- It works. (#12)", "- It is fast.", "### Attention")
    found = [text.index(words) for words in order]
    assert found == sorted(found)


def test_every_kind_is_explained():
    text = (ROOT / "changes/README.md").read_text("utf-8")
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == KINDS
