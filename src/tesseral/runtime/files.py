"""Writing outputs so that nothing is ever half-written or silently replaced."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesseral._errors import OutputExistsError


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Return ``path`` if it may be written, before any work is spent on it.

    Raises
    ------
    OutputExistsError
        If something is there and ``overwrite`` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists; choose another output or ask for it to be replaced (--overwrite)."
        )
    return path


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary directory beside ``path`` that becomes ``path`` on success.

    On any error, Ctrl-C included, the temporary directory is removed and whatever stood
    at ``path`` still stands there.
    """
    path = check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "new")
    temporary.mkdir()
    try:
        yield temporary
        _replace(temporary, check_output(path, overwrite=overwrite))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary file name beside ``path`` that becomes ``path`` on success."""
    path = check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "new")
    try:
        yield temporary
        os.replace(temporary, check_output(path, overwrite=overwrite))
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{uuid.uuid4().hex[:8]}")


def _replace(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; a directory in the way is moved aside, then removed."""
    old = _beside(path, "old")
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        if old.exists():
            os.replace(old, path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
