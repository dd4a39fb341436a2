"""Names of nodes, from what pandas and xarray know."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def node_names(given: Any) -> list[NDArray[Any]] | None:
    """Return the labels of every mode of a data frame or a labelled array, or None.

    A dimension without coordinates is numbered.

    Examples
    --------
    >>> node_names(np.ones((2, 2))) is None
    True
    """
    if hasattr(given, "dims") and hasattr(given, "coords"):  # xarray
        return [
            np.asarray(given.coords[dim]) if dim in given.coords else np.arange(size)
            for dim, size in zip(given.dims, given.shape, strict=True)
        ]
    if hasattr(given, "columns") and hasattr(given, "index"):  # pandas
        return [np.asarray(given.index), np.asarray(given.columns)]
    return None


def unnamed(given: Any) -> Any:
    """Return what a labelled array holds, a dask array too; anything else as it is."""
    return given.data if hasattr(given, "dims") and hasattr(given, "coords") else given
