"""A tensor regression in the shape that scikit-learn knows: samples along the first mode."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.metrics import r2_score
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from tesseral._errors import ParameterError, ShapeError
from tesseral.regress._tucker_response import TensorResponseRegressor


class SampleModeRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # no types there
    """Adapter of :class:`TensorResponseRegressor` to ``fit(X, y)`` and ``predict(X)``.

    Samples are the slices of the first mode of ``y``, and ``X`` holds their covariates. It works in
    ``cross_val_score``, ``GridSearchCV`` and pipelines; parameters of the regression are reached
    as ``regressor__rank`` and so on.

    Parameters
    ----------
    regressor : TensorResponseRegressor, optional
        The regression; by default of rank 1 and family normal. A one-dimensional ``y`` is a
        plain generalised linear model, of rank 1 whatever is given.
    covariates : list of K - 1 items, optional
        Covariates of the other modes of ``y``, as in :meth:`TensorResponseRegressor.fit`.
    fit_intercept : bool
        Add a constant covariate of the samples.

    Attributes
    ----------
    regressor_ : TensorResponseRegressor
        The fitted regression.
    n_features_in_ : int
    intercept_ : float or array of shape (p_1, ..., p_{K-1})
        0 without an intercept.
    coef_ : array of shape (n_features,) or (n_features, p_1, ..., p_{K-1})

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.standard_normal((50, 2))
    >>> y = X[:, 0, None, None] * np.ones((50, 3, 4)) + 0.1 * rng.standard_normal((50, 3, 4))
    >>> SampleModeRegressor().fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        regressor: TensorResponseRegressor | None = None,
        *,
        covariates: Any = None,
        fit_intercept: bool = True,
    ) -> None:
        self.regressor = regressor
        self.covariates = covariates
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "SampleModeRegressor":
        """Fit the regression of ``y`` on covariates of its samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, d_1, ..., d_{K-1})
            NaN where an entry is missing.
        sample_weight : array-like of shape (n_samples,), optional

        Raises
        ------
        ShapeError, ParameterError, ValueError
            If something does not fit.
        """
        if y is None:
            raise ParameterError("requires y to be passed, but the target y is None")
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        response = self._check_response(y, len(X))
        regressor = TensorResponseRegressor(rank=1) if self.regressor is None else self.regressor
        regressor = clone(regressor)
        if self._flat:
            regressor.set_params(rank=1)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
            kept = weights > 0  # a sample of weight 0 must not even choose among equal fits
            X, response, weights = X[kept], response[kept], weights[kept]
            weights = weights.reshape(-1, *[1] * (response.ndim - 1))
        others = [None] * (response.ndim - 1) if self.covariates is None else list(self.covariates)
        if len(others) != response.ndim - 1:
            raise ShapeError(
                f"SampleModeRegressor: y of shape {response.shape} needs {response.ndim - 1} "
                f"covariates for its modes after the first, got {len(others)}."
            )
        self._used = X.any(axis=0)  # a column of zeros has the coefficient 0
        if self.fit_intercept:
            self._used &= np.ptp(X, axis=0) > 0  # the intercept stands for constant columns
        self.regressor_ = regressor.fit(response, [self._design(X), *others], weights=weights)
        self._split_coefficients(X.shape[1])
        self.n_iter_ = self.regressor_.n_iter_
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the mean of ``y`` for every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,) or (n_samples, d_1, ..., d_{K-1})
        """
        check_is_fitted(self, "regressor_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        items = [self._design(X), *[None] * (len(self.regressor_.dims_) - 1)]
        mean = np.asarray(self.regressor_.predict(items))
        return mean[:, 0] if self._flat else mean

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the share of the variance of the observed entries that is explained."""
        truth = np.asarray(y, dtype=np.float64).reshape(len(y), -1)
        found = self.predict(X).reshape(len(truth), -1)
        if not np.isnan(truth).any():
            return float(
                r2_score(truth, found, sample_weight=sample_weight, multioutput="variance_weighted")
            )
        weights = np.ones(len(truth)) if sample_weight is None else np.asarray(sample_weight)
        spread = np.where(np.isnan(truth), 0.0, weights[:, None])
        known = np.nan_to_num(truth)
        centre = (spread * known).sum(axis=0) / np.maximum(spread.sum(axis=0), 1e-300)
        missed = (spread * (known - found) ** 2).sum()
        return float(1 - missed / (spread * (known - centre) ** 2).sum())

    def _check_response(self, y: Any, n_samples: int) -> NDArray[np.float64]:
        response = check_array(
            y,
            dtype=np.float64,
            ensure_2d=False,
            allow_nd=True,
            ensure_all_finite="allow-nan",
            input_name="y",
        )
        if response.ndim == 2 and response.shape[1] == 1:
            response = column_or_1d(response, warn=True)
        self._flat = response.ndim == 1
        if len(response) != n_samples:
            raise ShapeError(
                f"SampleModeRegressor: X has {n_samples} samples but y has {len(response)}."
            )
        return np.asarray(response[:, None] if self._flat else response)

    def _design(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the covariates that are fitted: those that are not constant, and a constant."""
        columns = [X[:, self._used]]
        if self.fit_intercept or not self._used.any():
            columns.insert(0, np.ones((len(X), 1)))
        return np.concatenate(columns, axis=1)

    def _split_coefficients(self, n_features: int) -> None:
        """Set coefficients and intercept."""
        fitted = np.asarray(self.regressor_.coef_)
        leading = self.fit_intercept or not self._used.any()
        whole = np.zeros((n_features, *fitted.shape[1:]))
        whole[self._used] = fitted[1:] if leading else fitted
        intercept = fitted[0] if leading else np.zeros(fitted.shape[1:])
        self.coef_ = whole[:, 0] if self._flat else whole
        self.intercept_ = float(intercept[0]) if self._flat else intercept

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
