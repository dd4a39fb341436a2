"""Writing outputs so that nothing is ever half-written or silently replaced."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tesseral._errors import OutputExistsError


def check_output(path: str | Path, *, overwrite: bool) -> Path:
    """Return where ``path`` leads if it may be written, before any work is spent on it.

    Symbolic links are followed, so that the link stays and what it points at is replaced.

    Raises
    ------
    OutputExistsError
        If something is there and ``overwrite`` is false, or if it is the current directory
        or one around it, which is never replaced.
    """
    path = Path(path).resolve()
    if path.exists() and not overwrite:
        raise OutputExistsError(
            f"{path} exists; choose another output or ask for it to be replaced (--overwrite)."
        )
    if Path.cwd().is_relative_to(path):
        raise OutputExistsError(
            f"{path} holds the current directory and is not replaced; choose another output."
        )
    return path


@contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary directory beside ``path`` that becomes ``path`` on success.

    On any error, Ctrl-C included, the temporary directory is removed and whatever stood
    at ``path`` still stands there.

    Raises
    ------
    OutputExistsError
        As :func:`check_output`, before and after the work.
    """
    path = check_output(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "new")
    try:
        temporary.mkdir()
        yield temporary
        _replace(temporary, check_output(path, overwrite=overwrite))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary file name beside ``path`` that becomes ``path`` on success.

    On any error, Ctrl-C included, the temporary file is removed and whatever stood at
    ``path`` still stands there.

    Raises
    ------
    OutputExistsError
        As :func:`check_output`, before and after the work, and if ``path`` is a directory.
    """
    path = _check_file(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "new")
    try:
        yield temporary
        os.replace(temporary, _check_file(path, overwrite=overwrite))
    finally:
        temporary.unlink(missing_ok=True)


def _check_file(path: str | Path, *, overwrite: bool) -> Path:
    path = check_output(path, overwrite=overwrite)
    if path.is_dir():
        raise OutputExistsError(f"{path} is a directory; a file does not replace it.")
    return path


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}-{uuid.uuid4().hex[:8]}")


def _replace(new: Path, path: Path) -> None:
    """Rename ``new`` to ``path``; what is in the way is moved aside, then removed."""
    old = _beside(path, "old")
    try:
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except BaseException:  # Ctrl-C too must not leave the old output under its hidden name
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink(missing_ok=True)
