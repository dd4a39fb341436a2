"""Relations among 14 countries, 1950 to 1965."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tesseral.datasets._files import read_arrays

PROVENANCE = (
    "Rummel, Dimensionality of Nations project, as used by Nickel, Tresp and Kriegel (2011) "
    "and distributed with the R package tensorregress 5.1."
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Nations:
    """Which of 56 relations held between which countries, with attributes of the countries.

    The arrays are read-only.

    Attributes
    ----------
    tensor : float64 array of shape (14, 14, 56)
        ``tensor[i, j, k]`` is 1 if relation k held from country i to country j, 0 if not,
        and NaN where nothing was recorded: 784 entries that relate a country to itself and
        435 others.
    covariates : float64 array of shape (14, 6)
        Attributes of the countries, 0 or 1.
    country : str array of shape (14,)
    covariate : str array of shape (6,)
    relation : str array of shape (56,)
    provenance : str
    """

    tensor: NDArray[Any]
    covariates: NDArray[Any]
    country: NDArray[Any]
    covariate: NDArray[Any]
    relation: NDArray[Any]
    provenance: str


def load_nations() -> Nations:
    """Return the relations among 14 countries, missing ones as NaN.

    The literature sets the missing entries to 0; ``numpy.nan_to_num(tensor)`` does that.

    Raises
    ------
    DataError
        If the installed file is missing or damaged.

    References
    ----------
    Nickel, Tresp and Kriegel (2011), "A three-way model for collective learning on
    multi-relational data". Xu, Hu and Wang, arXiv:1910.09499, regress it.

    Examples
    --------
    >>> load_nations().tensor.shape
    (14, 14, 56)
    """
    return Nations(**read_arrays("nations.npz"), provenance=PROVENANCE)
