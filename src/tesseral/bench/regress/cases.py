"""What is fitted, and what must hold of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tesseral.datasets import TensorResponse, make_tensor_response
from tesseral.regress import TensorResponseRegressor

PRODUCT = 2048
"""Order of the float64 matrix product that times are measured in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedCase:
    """A fit that is timed.

    Attributes
    ----------
    name : str
    shape, rank : tuple of int
    widths : tuple of (int or None)
        Numbers of covariates.
    family : str
    signal : float
        Largest absolute linear predictor of the planted truth.
    missing : float
        Share of entries that are taken out.
    options : dict
        Of the regressor.
    products : float or None
        At most so many matrix products may it take.
    megabytes : float or None
        At most so much memory may it take beside the data.
    """

    name: str
    shape: tuple[int, ...]
    rank: tuple[int, ...]
    widths: tuple[int | None, ...]
    family: str
    signal: float = 10.0
    missing: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()
    products: float | None = None
    megabytes: float | None = None

    def planted(self) -> TensorResponse:
        """Draw the data."""
        return make_tensor_response(
            self.shape,
            self.rank,
            self.widths,
            family=self.family,
            signal=self.signal,
            random_state=0,
        )

    def response(self, planted: TensorResponse) -> Any:
        """Return the data with holes."""
        tensor = planted.tensor.astype(np.float64)
        holes = np.random.default_rng(1).random(self.shape) < self.missing
        return np.where(holes, np.nan, tensor) if self.missing else tensor

    def regressor(self) -> TensorResponseRegressor:
        """Return what fits it."""
        return TensorResponseRegressor(rank=self.rank, family=self.family, **dict(self.options))


def _cube(d: int, family: str, *, rank: int = 3, **more: Any) -> SpeedCase:
    return SpeedCase(
        name=more.pop("name", f"{family} d={d}"),
        shape=(d,) * 3,
        rank=(rank,) * 3,
        widths=(round(0.4 * d),) * 3,
        family=family,
        options=(("tol", 1e-4),),
        **more,
    )


BRAIN = SpeedCase(
    name="binomial 68x68x136",
    shape=(68, 68, 136),
    rank=(10, 10, 4),
    widths=(None, None, 4),
    family="binomial",
    signal=5.0,
    options=(("tol", 0.0), ("max_iter", 5)),
    products=10.0,
    megabytes=300.0,
)
"""Of the size of a brain connectome: 5 rounds, as the R package was timed."""

SPEED = (
    _cube(100, "binomial", products=4.0),
    _cube(100, "poisson", products=1.5),
    _cube(100, "normal", products=0.5),
    BRAIN,
)


def growth() -> dict[str, list[SpeedCase]]:
    """Return fits that grow in size, in rank, and in the share of entries missing."""
    return {
        "size": [_cube(d, "binomial", name=f"{d}") for d in (40, 60, 80, 100, 120)],
        "rank": [_cube(60, "binomial", rank=r, name=f"{r}") for r in (2, 3, 4, 6, 8)],
        "missing": [
            _cube(60, "binomial", missing=share, name=f"{share:g}")
            for share in (0.0, 0.1, 0.3, 0.5, 0.7)
        ],
    }
