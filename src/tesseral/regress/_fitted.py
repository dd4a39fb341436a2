"""A fitted tensor-response regression: what was learned, and predictions from it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from tesseral._errors import ParameterError
from tesseral.core import multi_mode_product
from tesseral.core._arrays import Array, array_namespace, like
from tesseral.core.constraints import check_parameter, choice, integer
from tesseral.core.estimator import TensorEstimator
from tesseral.regress._covariates import listed, new_rows
from tesseral.regress._evaluate import evaluate
from tesseral.regress._fitting import canonical
from tesseral.regress._information import Covariance
from tesseral.regress._loop import Fit
from tesseral.regress._problem import Penalty
from tesseral.regress._response import beside
from tesseral.regress._setup import Setup, degrees_of_freedom


class FittedRegression(TensorEstimator):
    """Base that holds a fit; :class:`TensorResponseRegressor` names the attributes."""

    def predict(self, covariates: Any = None, *, offset: Any = None, kind: str = "mean") -> Array:
        """Return expectations for covariates, new ones or those of the fit.

        Parameters
        ----------
        covariates : list of K items, or mapping from mode to item, optional
            None, for any mode or for all, takes the rows of the fit; a mode that was fitted
            without covariates can have nothing else. A formula is applied to a data frame.
        offset : array that can be broadcast to the result, optional
            Without new covariates, that of the fit is used unless another is given; with new
            ones there is none unless it is given.
        kind : {"mean", "link"}
            The mean, or the linear predictor.

        Returns
        -------
        array of shape (n_0, ..., n_{K-1})

        Raises
        ------
        ShapeError, DtypeError, ParameterError
            If covariates or offset do not fit.
        """
        check_is_fitted(self, "coef_")
        if kind not in ("mean", "link"):
            raise ParameterError(f"predict: kind must be 'mean' or 'link', got {kind!r}.")
        eta = self._linear_predictor(covariates, offset)
        if kind == "link":
            return eta
        return self._setup.problem.family.mean(array_namespace("predict", eta), eta)

    def _mode(self, mode: int | str) -> int:
        """Return the number of a mode given by number or name."""
        check_is_fitted(self, "coef_")
        if isinstance(mode, str) and mode in self.dims_:
            return self.dims_.index(mode)
        check_parameter(
            "TensorResponseRegressor",
            "mode",
            mode,
            integer(0, len(self.dims_) - 1),
            choice(*self.dims_),
        )
        return int(mode)

    def _linear_predictor(self, covariates: Any, offset: Any) -> Array:
        matrices = self._rows(covariates)
        theta = multi_mode_product(
            multi_mode_product(self.core_, self.factors_),
            [None if matrix is None else like(matrix, self.core_) for matrix in matrices],
        )
        if offset is None and covariates is None:
            offset = self._setup.offset
        if offset is None:
            return theta
        return theta + beside("predict", "offset", offset, theta)

    def _rows(self, covariates: Any) -> list[NDArray[np.float64] | None]:
        """Return the covariates of every mode to predict for; None for an identity."""
        modes = self._setup.covariates
        rows: list[NDArray[np.float64] | None] = []
        items = listed("predict", covariates, len(modes), self.dims_)
        for mode, (fitted, item) in enumerate(zip(modes, items, strict=True)):
            if item is None:
                rows.append(fitted.matrix)
            elif fitted.matrix is None:
                raise ParameterError(
                    f"predict: mode {mode} was fitted without covariates, so there is nothing to "
                    "predict new rows from; give None for it."
                )
            else:
                rows.append(new_rows("predict", mode, fitted, item))
        return rows

    def _store(self, setup: Setup, fit: Fit, penalty: Penalty) -> None:
        """Set the learned attributes."""
        problem = setup.problem
        self._setup, self._point, self._penalty = setup, fit.point, penalty
        self._covariances: dict[str, Covariance] = {}
        self.core_, self.factors_ = canonical(fit.point, setup)
        self.coef_ = multi_mode_product(self.core_, self.factors_)
        self.rank_ = fit.point.rank
        self.dims_ = setup.dims
        self.covariate_names_ = [mode.names for mode in setup.covariates]
        self.n_entries_ = problem.seen.total_weight
        self.dof_ = degrees_of_freedom(problem, self.rank_)
        # a barrier is part of the kernels that were climbed on
        plain = not penalty.barrier or penalty.max_theta is None
        found = fit.found if plain else evaluate(problem, fit.point, None)
        kernels = found.kernels
        self.dispersion_ = fit.point.dispersion
        if problem.family.name in ("normal", "gamma"):
            self.dispersion_ = problem.family.profile_dispersion(kernels, problem.seen)
        self.log_likelihood_ = problem.family.total(kernels, problem.seen, fit.point.dispersion)
        self.bic_ = float(-2 * self.log_likelihood_ + self.dof_ * np.log(self.n_entries_))
