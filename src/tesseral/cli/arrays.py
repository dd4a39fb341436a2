"""Files that hold arrays by name: of NumPy and of R."""

import zlib
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from tesseral._errors import DataError
from tesseral.datasets.r_files import SUFFIXES as R_SUFFIXES
from tesseral.datasets.r_files import read_r

SUFFIXES = (".npy", ".npz", *R_SUFFIXES)
"""In small letters."""

KINDS = ".npy, .npz, .rda or .rds"


def read_arrays(path: Path, *, otherwise: str = "") -> dict[str, Any]:
    """Return the arrays in a file by name, and data frames of R; nothing pickled is read.

    Parameters
    ----------
    path : Path
        A lone array has the file's name.
    otherwise : str
        What else may be given, for the message that there is no such file.

    Raises
    ------
    DataError
        If there is no such file, or it cannot be read.
    MissingExtraError
        If it is one of R's and the extra ``data`` is not installed.
    """
    if path.suffix.lower() in R_SUFFIXES and path.is_file():
        return read_r(path, purpose=f"reading {path.name}")
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path} is of no kind that is read; give a {KINDS} file{otherwise}.")
    try:
        with path.open("rb") as file:  # NumPy would leave a damaged one open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {path.stem: loaded}
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give a {KINDS} file{otherwise}.") from None
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        why = "it is damaged, or holds Python objects" if "pickle" in str(error) else error
        raise DataError(f"{path} cannot be read as {KINDS}: {why}.") from None


def entry(path: Path, found: dict[str, Any], name: str | None, *, option: str) -> Any:
    """Return the array of a name; without one, that named tensor or the only one.

    Raises
    ------
    DataError
        If there is none.
    """
    if name is None:
        name = "tensor" if "tensor" in found or len(found) != 1 else next(iter(found))
    if name not in found:
        raise DataError(
            f"{path} has no array {name!r}; it has {', '.join(sorted(found))}. Name one with "
            f"{option}."
        )
    return found[name]
