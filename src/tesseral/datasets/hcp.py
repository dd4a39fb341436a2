"""The brain connectomes of the Human Connectome Project, from a file the user has.

Access to these data needs each user's own agreement to their terms, so none ship here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tesseral._errors import DataError
from tesseral.datasets._files import read_only
from tesseral.datasets.r_files import read_objects

OBJECT = "HCP"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HCP:
    """Connections between brain regions, one network per person, and facts about the persons.

    The arrays are read-only.

    Attributes
    ----------
    tensor : int or float array of shape (regions, regions, persons)
        ``tensor[i, j, k]`` is 1 if regions i and j are connected in person k. The published
        data have 68 regions and 136 persons.
    attributes : mapping of str to array of shape (persons,)
        One array per attribute: numbers (float with NaN where some are missing), or text
        (empty where missing) for factors and strings.
    """

    tensor: NDArray[Any]
    attributes: Mapping[str, NDArray[Any]]


def load_hcp(path: str | Path) -> HCP:
    """Read the connectome data of the R packages dTBM and tensorregress.

    Parameters
    ----------
    path : path
        The ``.rda`` file: one R object named ``HCP``, a list of ``tensor`` (an array of
        order three) and ``attr`` (a data frame with one row per person). Reading it runs
        no code from the file.

    Raises
    ------
    MissingExtraError
        If the ``rdata`` library is not installed (``pip install 'tesseral[data]'``).
    DataError
        If there is no such file, if it cannot be read, or if it holds something else.

    References
    ----------
    Hu and Wang, arXiv:2201.07401; Xu, Hu and Wang, arXiv:1910.09499.

    Examples
    --------
    >>> hcp = load_hcp("HCP.rda")  # doctest: +SKIP
    >>> hcp.tensor.shape, sorted(set(hcp.attributes["Gender"]))  # doctest: +SKIP
    ((68, 68, 136), ['F', 'M'])
    """
    objects = read_objects(path, purpose="load_hcp")
    tensor, frame = _members(Path(path), objects)
    attributes = {str(name): _column(column) for name, column in frame.items()}
    return HCP(tensor=read_only(tensor), attributes=MappingProxyType(attributes))


def _members(path: Path, objects: Any) -> tuple[NDArray[Any], Any]:
    """Return the tensor and the data frame, or say what the file holds instead."""
    found = objects.get(OBJECT) if isinstance(objects, dict) else None
    if found is None:
        names = ", ".join(map(str, objects)) if isinstance(objects, dict) else "no named object"
        raise DataError(f"load_hcp: {path} must hold an R object {OBJECT}, it holds {names}.")
    if not isinstance(found, dict) or not {"tensor", "attr"} <= found.keys():
        held = f"members {', '.join(map(str, found))}" if isinstance(found, dict) else "no members"
        raise DataError(
            f"load_hcp: {OBJECT} in {path} must be a list of 'tensor' and 'attr'; it has {held}."
        )
    tensor, frame = np.array(found["tensor"]), found["attr"]
    if tensor.dtype.kind not in "biuf" or tensor.ndim != 3 or tensor.shape[0] != tensor.shape[1]:
        raise DataError(
            f"load_hcp: 'tensor' in {path} must be numbers of shape (regions, regions, persons), "
            f"got {tensor.dtype} of shape {tensor.shape}."
        )
    if not hasattr(frame, "columns") or len(frame) != tensor.shape[2]:
        rows = f"{len(frame)} rows" if hasattr(frame, "columns") else type(frame).__name__
        raise DataError(
            f"load_hcp: 'attr' in {path} must be a data frame with one row for each of the "
            f"{tensor.shape[2]} persons, got {rows}."
        )
    return tensor, frame


def _column(column: Any) -> NDArray[Any]:
    """Return a column of a pandas data frame as a plain array that needs no pickling."""
    missing = column.isna().to_numpy(dtype=bool)
    if column.dtype.kind not in "biuf":
        texts = ["" if gone else str(value) for value, gone in zip(column, missing, strict=True)]
        return read_only(np.array(texts, dtype=str))
    if missing.any():
        return read_only(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return read_only(np.array(column.tolist()))
