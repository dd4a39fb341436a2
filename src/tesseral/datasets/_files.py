"""The files that ship with the package, read only after their checksum was verified."""

import hashlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import DataError

FOLDER = Path(__file__).parent / "data"
_TABLE = "SHA256SUMS"  # the format of sha256sum, so that it can be checked without us


def read_verified(name: str) -> bytes:
    """Return the contents of the package data file ``name``, such as ``"peru.npz"``.

    Raises
    ------
    DataError
        If the file is missing, or if its SHA-256 is not the one in the table.
    """
    content = _read(name)
    found = hashlib.sha256(content).hexdigest()
    expected = _checksums().get(name)
    if found != expected:
        raise DataError(
            f"package data file {FOLDER / name} is damaged: its SHA-256 is {found}, "
            f"and {_TABLE} says {expected}; reinstall tesseral."
        )
    return content


def read_arrays(name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of the package data file ``name`` (``.npz``), made read-only."""
    with np.load(BytesIO(read_verified(name)), allow_pickle=False) as file:
        return {key: read_only(file[key]) for key in file.files}


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Make ``array`` refuse writing, and return it."""
    array.setflags(write=False)
    return array


def files_below(folder: str) -> list[str]:
    """Return the names in the table that lie in ``folder``."""
    return [name for name in _checksums() if name.startswith(f"{folder}/")]


def _checksums() -> dict[str, str]:
    lines = _read(_TABLE).decode("ascii").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _read(name: str) -> bytes:
    try:
        return (FOLDER / name).read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"package data file {FOLDER / name} is missing; reinstall tesseral."
        ) from None
