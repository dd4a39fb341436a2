"""The version of a build comes from the last tag, and is what the package says of itself."""

import importlib.metadata
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

import tesseral

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("tag_version", ROOT / "tools" / "tag_version.py")
tag_version = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tag_version)


@pytest.fixture
def repository(tmp_path):
    """A function that runs git in a repository of one commit."""

    def git(*words):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    return git


def test_without_a_tag_it_is_the_version_before_the_first(repository, tmp_path):
    assert tag_version.version(tmp_path) == tag_version.UNTAGGED


def test_a_tag_is_the_version_and_later_commits_lead_to_the_next(repository, tmp_path):
    repository("tag", "v1.2.3")
    repository("tag", "other")
    assert tag_version.version(tmp_path) == "1.2.3"
    repository("commit", "-q", "--allow-empty", "-m", "two")
    assert re.fullmatch(r"1\.2\.4\.dev1\+g[0-9a-f]{7,}", tag_version.version(tmp_path))


def test_a_source_archive_keeps_its_version(repository, tmp_path):
    repository("tag", "v1.2.3")
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.2\nName: tesseral\nVersion: 7.8.9\n")
    assert tag_version.version(tmp_path) == "7.8.9"


def test_sources_inside_of_another_repository_do_not_take_its_tags(repository, tmp_path):
    repository("tag", "v1.2.3")
    inner = tmp_path / "inner"
    inner.mkdir()
    assert tag_version.version(inner) == tag_version.UNTAGGED


def test_outside_of_any_repository_there_is_a_version(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert tag_version.version(tmp_path) == tag_version.UNTAGGED
    monkeypatch.setenv("PATH", "")
    assert tag_version.version(tmp_path) == tag_version.UNTAGGED


def test_the_package_says_what_was_installed():
    assert tesseral.__version__ == importlib.metadata.version("tesseral")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tesseral.nothing
