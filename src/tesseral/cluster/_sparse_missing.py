"""Missing entries of sparse tensors, which are few beside the zeros that are not stored."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tesseral.cluster._source import Floats
from tesseral.core.coo import CooTensor
from tesseral.core.unfold import unfold

WHOLE = 1 - 1e-9
"""Missing share from which an entry, averaged over tied modes, counts as missing."""

PIECE = 2**20
"""Numbers that are held at a time while entries of a low-rank tensor are computed."""


def split(tensor: CooTensor) -> tuple[CooTensor, CooTensor | None]:
    """Return what a tensor shows, and ones where it is missing, or None if nothing is."""
    gone = np.isnan(tensor.values)
    if not gone.any():
        return tensor, None
    shown, missing = (
        CooTensor(coords=tensor.coords[:, part], values=values, shape=tensor.shape)
        for part, values in ((~gone, tensor.values[~gone]), (gone, np.ones(int(gone.sum()))))
    )
    return shown, missing


def shares_at(missing: CooTensor, coords: NDArray[np.integer]) -> Floats:
    """Return the share of the entries at some coordinates that is missing."""
    stored = np.ravel_multi_index(tuple(missing.coords), missing.shape)
    order = np.argsort(stored)
    wanted = np.ravel_multi_index(tuple(coords), missing.shape)
    place = np.minimum(np.searchsorted(stored, wanted, sorter=order), len(order) - 1)
    found = order[place]
    return np.where(stored[found] == wanted, missing.values[found], 0.0)


def tucker_entries(core: Floats, factors: Sequence[Floats], coords: NDArray[np.integer]) -> Floats:
    """Return the entries at some coordinates of a core multiplied by a matrix along each mode."""
    step = max(PIECE // core.size, 1)
    found = np.empty(coords.shape[1])
    for start in range(0, len(found), step):
        part = slice(start, start + step)
        rows = factors[0][coords[0, part]] @ unfold(core, 0)
        for mode in range(1, core.ndim):
            split_rows = rows.reshape(len(rows), core.shape[mode], -1)
            rows = np.einsum("nr,nrm->nm", factors[mode][coords[mode, part]], split_rows)
        found[part] = rows[:, 0]
    return found
