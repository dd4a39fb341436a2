import os
from pathlib import Path

import pytest

from tesseral._errors import OutputExistsError
from tesseral.runtime import files
from tesseral.runtime.files import atomic_directory, atomic_file, check_output


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def nothing():
    pass


def write_directory(path, text="new", *, then=nothing, **options):
    with atomic_directory(path, **options) as temporary:
        (temporary / "data").write_text(text)
        then()


def write_file(path, text="new", *, then=nothing, **options):
    with atomic_file(path, **options) as temporary:
        temporary.write_text(text)
        then()


def raiser(failure):
    def fail():
        raise failure

    return fail


def read(path):
    return (path / "data" if path.is_dir() else path).read_text()


WRITERS = pytest.mark.parametrize("write", [write_directory, write_file])
FAILURES = pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])


@WRITERS
def test_success_leaves_the_output_alone_in_place(write, tmp_path):
    out = tmp_path / "new" / "parents" / "out"
    write(out)
    assert read(out) == "new"
    assert names(out.parent) == ["out"]


@WRITERS
@FAILURES
def test_a_failure_leaves_nothing(write, failure, tmp_path):
    with pytest.raises(failure):
        write(tmp_path / "out", "half", then=raiser(failure))
    assert names(tmp_path) == []


@WRITERS
def test_what_exists_is_refused_before_any_work(write, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(OutputExistsError, match=r"out exists; .* \(--overwrite\)\."):
        write(out)
    assert read(out) == "old"
    assert names(tmp_path) == ["out"]


@WRITERS
def test_overwrite_replaces(write, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    write(out, overwrite=True)
    assert read(out) == "new"
    assert names(tmp_path) == ["out"]


@WRITERS
@FAILURES
def test_a_failed_overwrite_keeps_the_old(write, failure, tmp_path):
    out = tmp_path / "out"
    write(out, "old")
    with pytest.raises(failure):
        write(out, "half", overwrite=True, then=raiser(failure))
    assert read(out) == "old"
    assert names(tmp_path) == ["out"]


@WRITERS
def test_an_output_that_appears_during_the_work_is_not_replaced(write, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError, match="out exists"):
        write(out, "ours", then=lambda: write(out, "theirs"))
    assert read(out) == "theirs"
    assert names(tmp_path) == ["out"]


@FAILURES
def test_a_failure_between_the_two_renames_puts_the_old_directory_back(
    failure, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    write_directory(out, "old")
    replace = os.replace

    def failing(source, target):
        if ".new-" in str(source):
            raise failure
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(failure):
        write_directory(out, overwrite=True)
    assert read(out) == "old"
    assert names(tmp_path) == ["out"]


def test_a_directory_replaces_a_file_and_never_the_other_way(tmp_path):
    out = tmp_path / "out"
    write_file(out, "old")
    write_directory(out, overwrite=True)
    assert read(out) == "new"
    with pytest.raises(OutputExistsError, match="is a directory; a file does not replace it"):
        write_file(out, overwrite=True)
    assert names(tmp_path) == ["out"]


@WRITERS
def test_a_link_stays_and_what_it_points_at_is_replaced(write, tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "real", tmp_path / "link"
    link.symlink_to(target)
    write(link, "old")
    write(link, overwrite=True)
    assert link.is_symlink()
    assert read(target) == "new"
    assert names(tmp_path / "disk") == ["real"]


@pytest.mark.parametrize("where", [".", "..", "here/.."])
def test_the_current_directory_is_never_replaced(where, tmp_path, monkeypatch):
    here = tmp_path / "outer" / "here"
    here.mkdir(parents=True)
    (here / "precious").touch()
    monkeypatch.chdir(here if where != "here/.." else here.parent)
    with pytest.raises(OutputExistsError, match="holds the current directory"):
        write_directory(where, overwrite=True)
    assert names(here) == ["precious"]


def test_a_free_output_is_returned_as_a_path(tmp_path):
    assert check_output(str(tmp_path / "a" / ".." / "out"), overwrite=False) == Path(
        tmp_path.resolve() / "out"
    )
