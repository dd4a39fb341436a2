"""How sure a fitted tensor-response regression is: errors, intervals, tests, the bootstrap."""

from abc import abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.utils.validation import check_is_fitted

from tesseral._errors import InformationError
from tesseral.core import multi_mode_product
from tesseral.core.constraints import Constraint, check_parameter, choice, integer
from tesseral.regress import _inference as inference
from tesseral.regress._dask import is_dask
from tesseral.regress._fitted import FittedRegression
from tesseral.regress._fitting import Options
from tesseral.regress._information import Covariance, host
from tesseral.regress._response import orbit_labels
from tesseral.regress._summary import Summary, summarise

Floats = NDArray[np.float64]

_LEVEL = Constraint("a number between 0 and 1", lambda v: isinstance(v, float) and 0 < v < 1)
_CORRECTIONS = choice("holm", "bonferroni", "fdr", "none")


class UncertainRegression(FittedRegression):
    """Base that answers how far a fit can be trusted."""

    def standard_errors(self, *, information: str = "observed") -> Floats:
        """Return the standard error of every coefficient.

        Parameters
        ----------
        information : {"observed", "expected"}
            Second derivatives of the likelihood at the data, or their expectation.

        Returns
        -------
        float64 NumPy array of the shape of ``coef_``

        Raises
        ------
        InformationError
            If the data do not determine the coefficients, or the fit is not at a maximum.
        """
        found = self._covariance(information)
        rows = inference.coefficient_rows(self._setup.bases)
        return np.sqrt(found.variances(rows))

    def coef_interval(
        self,
        level: float = 0.95,
        *,
        information: str = "observed",
        bootstrap: inference.Bootstrap | None = None,
    ) -> inference.Interval:
        """Return a confidence interval for every coefficient.

        Parameters
        ----------
        level : float
            Between 0 and 1.
        information : {"observed", "expected"}
            See :meth:`standard_errors`.
        bootstrap : Bootstrap, optional
            Take quantiles of these draws instead.
        """
        check_parameter("coef_interval", "level", level, _LEVEL)
        if bootstrap is not None:
            return bootstrap.interval(level)
        errors = self.standard_errors(information=information)
        return inference.normal_interval(host(self.coef_), errors, level)

    def mean_interval(
        self,
        covariates: Any = None,
        level: float = 0.95,
        *,
        offset: Any = None,
        information: str = "observed",
        bootstrap: inference.Bootstrap | None = None,
    ) -> inference.Interval:
        """Return a confidence interval for every mean, of the fit or for new covariates.

        It is found for the linear predictor and taken through the inverse link.

        Parameters
        ----------
        covariates, offset
            As for :meth:`predict`.
        level, information, bootstrap
            As for :meth:`coef_interval`.
        """
        check_parameter("mean_interval", "level", level, _LEVEL)
        matrices = self._rows(covariates)
        eta = host(self._linear_predictor(covariates, offset))
        if bootstrap is None:
            rows = inference.mean_rows(self._setup.bases, matrices)
            errors = np.sqrt(self._covariance(information).variances(rows))
            found = inference.normal_interval(eta, errors, level)
        else:
            shift = eta - multi_mode_product(host(self.coef_), matrices)
            drawn = [multi_mode_product(coef, matrices) + shift for coef in bootstrap.coef]
            found = inference.link_interval(np.stack(drawn), level)
        mean = self._setup.problem.family.mean
        return inference.Interval(low=mean(np, found.low), high=mean(np, found.high), level=level)

    def wald_tests(
        self, mode: int | str, *, correction: str = "holm", information: str = "observed"
    ) -> inference.WaldTests:
        """Test for every covariate of a mode whether it has any effect.

        The p-values are right where every direction of the fitted rank is well determined; a
        rank higher than the data tell of fits noise and makes them too small.

        Parameters
        ----------
        mode : int or str
            Number of the mode, or its name.
        correction : {"holm", "bonferroni", "fdr", "none"}
            How p-values are adjusted for the number of covariates.
        information : {"observed", "expected"}
            See :meth:`standard_errors`.
        """
        check_parameter("wald_tests", "correction", correction, _CORRECTIONS)
        number = self._mode(mode)
        return inference.wald_tests(
            self._covariance(information),
            self._setup.bases,
            host(self.core_),
            [host(factor) for factor in self.factors_],
            self.covariate_names_[number],
            number,
            correction,
        )

    def coef_tests(
        self, *, correction: str = "fdr", information: str = "observed"
    ) -> inference.WaldTests:
        """Test for every coefficient whether it is zero.

        Coefficients that tied modes make equal are tested once, and count once.

        Parameters
        ----------
        correction, information
            As for :meth:`wald_tests`.

        Returns
        -------
        WaldTests
            Its arrays have the shape of ``coef_``.
        """
        check_parameter("coef_tests", "correction", correction, _CORRECTIONS)
        coef = host(self.coef_)
        statistic = (coef / self.standard_errors(information=information)) ** 2
        p_value = stats.chi2.sf(statistic, 1)
        firsts, places = np.unique(
            orbit_labels(coef.shape, self._setup.problem.groups), return_inverse=True
        )
        adjusted = inference.adjusted(p_value.ravel()[firsts], correction)[places]
        return inference.WaldTests(
            names=(),
            statistic=statistic,
            df=1,
            p_value=p_value,
            adjusted=adjusted.reshape(coef.shape),
            correction=correction,
        )

    def bootstrap(
        self,
        n_draws: int = 200,
        *,
        kind: str = "parametric",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> inference.Bootstrap:
        """Fit data drawn anew, for intervals that do not rest on the information.

        Parameters
        ----------
        n_draws : int
        kind : {"parametric", "entries"}
            Draw every entry from its fitted distribution, or entries with replacement.
        n_jobs : int, optional
            Fits at a time, as in joblib.
        random_state : seed
        """
        check_is_fitted(self, "coef_")
        check_parameter("bootstrap", "n_draws", n_draws, integer(2))
        check_parameter("bootstrap", "kind", kind, choice("parametric", "entries"))
        if is_dask(self._setup.tensor):
            raise InformationError("bootstrap: needs the response in memory; it is a dask array.")
        return inference.bootstrap(
            self._setup,
            replace(self._options(), penalty=self._penalty, guard=False),
            self.rank_,
            host(self.coef_),
            host(self.predict()),
            self.dispersion_,
            kind=kind,
            n_draws=n_draws,
            n_jobs=n_jobs,
            random_state=random_state,
        )

    def summary(
        self, *, information: str = "observed", correction: str = "holm", n_coefficients: int = 10
    ) -> Summary:
        """Return what there is to say about the fit; printed, it reads like a regression table.

        Parameters
        ----------
        information : {"observed", "expected"}
            See :meth:`standard_errors`.
        correction : {"holm", "bonferroni", "fdr", "none"}
            See :meth:`wald_tests`.
        n_coefficients : int
            How many coefficients to list, those of largest z first.
        """
        check_is_fitted(self, "coef_")
        check_parameter("summary", "correction", correction, _CORRECTIONS)
        check_parameter("summary", "n_coefficients", n_coefficients, integer(0))
        return summarise(
            self, information=information, correction=correction, n_coefficients=n_coefficients
        )

    def _covariance(self, information: str) -> Covariance:
        """Return the covariance of the coefficients, found once for each kind."""
        check_is_fitted(self, "coef_")
        check_parameter(
            "TensorResponseRegressor", "information", information, choice("observed", "expected")
        )
        if is_dask(self._setup.tensor):
            raise InformationError(
                "TensorResponseRegressor: standard errors need the response in memory; it is a "
                "dask array. Fit again to a part of it."
            )
        if information not in self._covariances:
            self._covariances[information] = inference.information_covariance(
                self._setup,
                self._point,
                self._penalty,
                scale=inference.scale_of(self._setup, self.dof_, self.dispersion_),
                observed=information == "observed",
            )
        return self._covariances[information]

    @abstractmethod
    def _options(self) -> Options:
        """Return how a fit is made, for the bootstrap."""
