"""Co-sponsorship among the legislators of Peru in 2006."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tesseral.datasets._files import read_arrays

PROVENANCE = (
    "Public legislative record of the Congress of Peru, legislative period 2006_I, collected "
    "by Lee, Magallanes and Porter (2017), as distributed with the R package dTBM 3.0."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peru:
    """Which three legislators sponsored a bill together, and who belonged to which party.

    The arrays are read-only.

    Attributes
    ----------
    tensor : uint8 array of shape (116, 116, 116)
        For distinct i, j and k, ``tensor[i, j, k]`` is 1 if these legislators sponsored
        some bill of the table together. Symmetric in all modes. Entries with a repeated
        index mean nothing: they are 0, but for twelve that came so in the source.
    legislator_id : str array of shape (116,)
    party : str array of shape (116,)
        Five parties, of 13, 5, 35, 18 and 45 legislators.
    law_cdn : int32 array of shape (5844,)
        Number of the bill; the table has one row per bill and sponsor, 802 bills.
    law_legislator_id : str array of shape (5844,)
        The sponsor.
    law_type : int16 array of shape (5844,)
    law_status : str array of shape (5844,)
        What became of the bill, in Spanish.
    law_period : str array of shape (5844,)
        Legislative period, ``"2006_I"`` throughout.
    provenance : str
    """

    tensor: NDArray[Any]
    legislator_id: NDArray[Any]
    party: NDArray[Any]
    law_cdn: NDArray[Any]
    law_legislator_id: NDArray[Any]
    law_type: NDArray[Any]
    law_status: NDArray[Any]
    law_period: NDArray[Any]
    provenance: str


def load_peru() -> Peru:
    """Return the co-sponsorship data of the Peruvian legislature.

    Raises
    ------
    DataError
        If the installed file is missing or damaged.

    References
    ----------
    Lee, Magallanes and Porter (2017), "Time-dependent community structure in legislation
    cosponsorship networks in the Congress of the Republic of Peru". Hu and Wang,
    arXiv:2201.07401, cluster it.

    Examples
    --------
    >>> load_peru().tensor.shape
    (116, 116, 116)
    """
    return Peru(**read_arrays("peru.npz"), provenance=PROVENANCE)
