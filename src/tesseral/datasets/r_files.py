"""Files that R wrote: ``.rda``, ``.RData`` and ``.rds``. Reading them runs no code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tesseral._errors import DataError
from tesseral.runtime.extras import require

SUFFIXES = (".rda", ".rdata", ".rds")
"""Of file names in small letters; the last holds one object without a name."""

MEMBER = "$"
"""Between the name of a list and that of its member, as in R."""


def read_objects(path: str | Path, *, purpose: str) -> Any:
    """Return what an R file holds: a dict of objects, or the one object of an ``.rds`` file.

    Parameters
    ----------
    path : path
        File to read.
    purpose : str
        Who asks, for messages.

    Raises
    ------
    MissingExtraError
        If the ``rdata`` library is not installed.
    DataError
        If there is no such file, or it cannot be read.
    """
    path = Path(path)
    rdata = require("rdata", extra="data", purpose=purpose)
    if not path.is_file():
        raise DataError(f"{purpose}: there is no file {path}.")
    read = rdata.read_rds if path.suffix.lower() == SUFFIXES[-1] else rdata.read_rda
    try:
        return read(path)
    # the reader meets damaged bytes with whatever its parsing runs into first
    except Exception as error:
        raise DataError(
            f"{purpose}: {path} is not a readable R data file "
            f"({type(error).__name__}: {error}); it may be damaged or cut short."
        ) from error


def read_r(path: str | Path, *, purpose: str = "read_r") -> dict[str, Any]:
    """Return the arrays and data frames in an R file by name.

    Members of lists are named as in R: ``HCP$tensor``. Columns of data frames are arrays by
    themselves, too: ``HCP$attr$Gender``. The one object of an ``.rds`` file has the file's
    name.

    Parameters
    ----------
    path, purpose
        As for :func:`read_objects`.

    Returns
    -------
    dict of str to array or pandas data frame
        Integers stay integers; R's missing values are NaN in floats.

    Raises
    ------
    MissingExtraError, DataError
        As :func:`read_objects`, or if there is no array in the file.
    """
    found = read_objects(path, purpose=purpose)
    named = isinstance(found, Mapping) and Path(path).suffix.lower() != SUFFIXES[-1]
    held: dict[str, Any] = {}
    for name, value in (found if named else {Path(path).stem: found}).items():
        _add(held, str(name), value)
    if not held:
        raise DataError(f"{purpose}: {path} holds no array and no data frame.")
    return held


def _add(held: dict[str, Any], name: str, value: Any) -> None:
    """Add an object, and what is in it, under its name."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            _add(held, f"{name}{MEMBER}{key}", member)
        return
    if hasattr(value, "columns"):
        held[name] = value
        for column in value.columns:
            held[f"{name}{MEMBER}{column}"] = value[column].to_numpy()
        return
    array = np.asarray(value)
    if array.dtype.kind in "biufUO" and array.ndim:
        held[name] = array.astype(str) if array.dtype.kind == "O" else array
