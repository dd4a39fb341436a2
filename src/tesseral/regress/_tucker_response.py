"""The estimator: a tensor explained by covariates of its modes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from tesseral._errors import ParameterError
from tesseral.core import StoppingRule
from tesseral.core.constraints import (
    BOOLEAN,
    NONE,
    SEED,
    Constraint,
    choice,
    integer,
    real,
    sequence_of,
)
from tesseral.regress._dask import fit_dask, is_dask, prepare_dask
from tesseral.regress._families import FAMILIES
from tesseral.regress._fitting import (
    SEPARATED,
    Options,
    fit_rank,
    warn_of_separation,
)
from tesseral.regress._problem import Penalty
from tesseral.regress._select import select_rank
from tesseral.regress._setup import Setup, check_rank, prepare
from tesseral.regress._uncertainty import UncertainRegression

_POSITIVE = integer(1)
_ARRAY = Constraint("an array", lambda value: hasattr(value, "shape"))


class TensorResponseRegressor(UncertainRegression):
    r"""Generalised linear regression of a tensor on covariates of several of its modes.

    The response Y of shape (d_0, ..., d_{K-1}) has independent entries with

    .. math:: g(E\,Y) = B \times_0 X_0 \times_1 X_1 \dots + \text{offset},

    where :math:`X_k` of shape (d_k, p_k) holds the covariates of mode k, or is the identity, and
    the coefficient tensor :math:`B = C \times_0 M_0 \times_1 M_1 \dots` has Tucker rank
    (r_0, ..., r_{K-1}).

    Parameters
    ----------
    rank : int, sequence of K int, "bic" or "cv"
        Tucker rank of the coefficients, at most the number of independent covariates of each
        mode; a single number counts for all modes. The words choose among ``candidates``.
    family : {"normal", "binomial", "poisson", "negative_binomial", "gamma"}
        Distribution of an entry; g is the identity, the logit, or else the logarithm.
    symmetric : bool or sequence of sequence of int
        Modes that share covariates and factors, with a core symmetric in them: all, none, or
        groups such as ``[(0, 1)]``. If the data are symmetric too, entries that are equal for
        that reason count once.
    constraint : {None, "rescale", "barrier"}
        How the linear predictor without offset is bounded by ``max_theta``: not at all, by
        shrinking the coefficients, or by a logarithmic barrier. With None, a fit that runs away
        is done again under a barrier at 30, with a warning.
    max_theta : float, optional
        The bound; 30 by default.
    barrier : float
        Weight of the logarithmic barrier.
    ridge : float
        Half of it times the squared norm of the coefficient tensor is taken from the
        log-likelihood (of unit dispersion, where there is one).
    dispersion : float, optional
        Dispersion of the negative binomial family, estimated by default.
    start : {"spectral", "random"} or array of shape (p_0, ..., p_{K-1})
        Where to begin: low-rank least squares on transformed data, random, or given
        coefficients.
    n_init : int
        Number of starts, the likeliest wins; those after the first are random.
    max_iter : int
        Most rounds through all factors and the core.
    tol : float
        Stop when a round changes the log-likelihood by at most this share.
    candidates : int, sequence of tuple, or sequence of K sequences of int, optional
        For ``rank="bic"`` and ``"cv"``: the largest rank of any mode, the ranks themselves, or
        the choices for each mode. By default ranks up to 8.
    search : {"local", "grid"}
        Walk from a small rank to better neighbours, or try all candidates.
    cv : int
        Number of folds over entries for ``rank="cv"``.
    n_jobs : int, optional
        Fits to run at a time while a rank is chosen, as in joblib, whose backend may be dask.
    random_state : seed
        For random starts and folds.

    Attributes
    ----------
    coef_ : array of shape (p_0, ..., p_{K-1})
        The coefficient tensor B; p_k is d_k for a mode without covariates.
    core_ : array of shape (r_0, ..., r_{K-1})
    factors_ : list of K arrays of shape (p_k, r_k)
        With orthonormal columns. The unfoldings of the core have orthogonal rows, the longest
        first, which determines the factors up to signs.
    rank_ : tuple of K int
    log_likelihood_ : float
        At the fit, with all constants and without penalties; entries that symmetry makes equal
        count once. A variance or shape that is not given is profiled out.
    bic_ : float
        -2 log-likelihood + dof log(n_entries_): weights count as numbers of observations.
    dof_ : int
        Number of free parameters: sum of (p_k - r_k) r_k, and the entries of the core.
    dispersion_ : float
        Variance (normal), 1 / shape (gamma), excess (negative binomial); 1 for the others.
    n_entries_ : float
        Observed entries, those that symmetry makes equal counted once, times weights.
    history_ : tuple of float
        Log-likelihood, less penalties, at the start and after each round; it never falls.
    n_iter_, converged_ : int, bool
    separation_ : Separation or None
        Where linear predictors ran away, if they did.
    selection_ : Selection
        Only if the last fit chose a rank: all that were tried.

    References
    ----------
    Xu, Hu and Wang, "Generalized tensor regression with covariates on multiple modes",
    arXiv:1910.09499: the model (equation 3), alternating updates (algorithm 1), BIC.

    Notes
    -----
    A round costs one pass over the data for each factor and one for the core, with some tens of
    operations an entry; no Kronecker product of covariates is formed.

    Examples
    --------
    >>> from tesseral.datasets import make_tensor_response
    >>> planted = make_tensor_response((20, 20, 20), 2, (4, 4, None), random_state=0)
    >>> model = TensorResponseRegressor(rank=2).fit(planted.tensor, list(planted.covariates))
    >>> model.coef_.shape
    (4, 4, 20)
    >>> bool(abs(model.predict() - planted.mean).mean() < 0.2)
    True
    """

    _allow_missing: ClassVar[bool] = True
    _constraints: ClassVar[Mapping[str, tuple[Constraint, ...]]] = {
        "rank": (_POSITIVE, sequence_of(_POSITIVE), choice("bic", "cv")),
        "family": (FAMILIES,),
        "symmetric": (BOOLEAN, sequence_of(sequence_of(integer(0)))),
        "constraint": (NONE, choice("rescale", "barrier")),
        "max_theta": (NONE, real(0, exclude_low=True)),
        "barrier": (real(0, exclude_low=True),),
        "ridge": (real(0),),
        "dispersion": (NONE, real(0, exclude_low=True)),
        "start": (choice("spectral", "random"), _ARRAY),
        "n_init": (_POSITIVE,),
        "max_iter": (_POSITIVE,),
        "tol": (real(0),),
        "candidates": (
            NONE,
            _POSITIVE,
            Constraint(
                "a sequence of sequences of integers", lambda v: isinstance(v, list | tuple)
            ),
        ),
        "search": (choice("local", "grid"),),
        "cv": (integer(2),),
        "n_jobs": (NONE, Constraint("an integer", lambda v: isinstance(v, int | np.integer))),
        "random_state": (SEED,),
    }

    def __init__(
        self,
        rank: Any = 2,
        *,
        family: str = "normal",
        symmetric: Any = False,
        constraint: str | None = None,
        max_theta: float | None = None,
        barrier: float = 0.1,
        ridge: float = 0.0,
        dispersion: float | None = None,
        start: Any = "spectral",
        n_init: int = 1,
        max_iter: int = 200,
        tol: float = 1e-8,
        candidates: Any = None,
        search: str = "local",
        cv: int = 5,
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.rank = rank
        self.family = family
        self.symmetric = symmetric
        self.constraint = constraint
        self.max_theta = max_theta
        self.barrier = barrier
        self.ridge = ridge
        self.dispersion = dispersion
        self.start = start
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.candidates = candidates
        self.search = search
        self.cv = cv
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(
        self,
        Y: Any,
        covariates: Any = None,
        *,
        weights: Any = None,
        offset: Any = None,
        mask: Any = None,
    ) -> "TensorResponseRegressor":
        """Fit the coefficients to a response.

        Parameters
        ----------
        Y : array or xarray.DataArray of shape (d_0, ..., d_{K-1})
            Real, K >= 2; NaN where an entry is missing. A dask array is fitted chunk by chunk,
            on dask's cluster if there is one; it must be cut along one mode without covariates,
            and takes no weights, offset, mask, ties or search for a rank.
        covariates : list of K items, or mapping from mode to item, optional
            For each mode None, a matrix of shape (d_k, p_k), a data frame, or a pair of a
            formula and a data frame. Formulas bring an intercept, matrices are taken as they
            are.
        weights : array that can be broadcast to the shape of Y, optional
            What the log-likelihood of an entry is multiplied by.
        offset : array that can be broadcast to the shape of Y, optional
            Added to the linear predictor: for counts, the logarithm of the exposure.
        mask : boolean array of the shape of Y, optional
            True where an entry is observed.

        Returns
        -------
        TensorResponseRegressor
            Itself.

        Raises
        ------
        ShapeError, DtypeError, ParameterError
            If something does not fit; the message says what.

        Warns
        -----
        CollinearityWarning, SeparationWarning, MissingSliceWarning, ConvergenceWarning
        """
        self._check_parameters()
        self.__dict__.pop("selection_", None)  # of a fit before
        if is_dask(Y):
            return self._fit_dask(Y, covariates, [weights, offset, mask])
        setup = prepare(
            type(self).__name__,
            Y,
            covariates,
            family=self.family,
            symmetric=self.symmetric,
            dispersion=self.dispersion,
            weights=weights,
            offset=offset,
            mask=mask,
            stacklevel=3,
        )
        rank = check_rank(type(self).__name__, setup.problem, self._chosen_rank(setup))
        fit, penalty, separation = fit_rank(setup, rank, self._options())
        if separation is not None:
            warn_of_separation(type(self).__name__, setup, separation, stacklevel=2)
        self.separation_ = separation
        self._store(setup, fit, penalty)
        self._store_result(fit.result)
        return self

    def _fit_dask(
        self, response: Any, covariates: Any, others: list[Any]
    ) -> "TensorResponseRegressor":
        """Fit to a dask array, chunk by chunk."""
        where = type(self).__name__
        if isinstance(self.rank, str) or any(other is not None for other in others):
            raise ParameterError(
                f"{where}: a dask array takes a given rank, no weights, offset or mask; missing "
                "entries are NaN."
            )
        setup, mode = prepare_dask(
            where,
            response,
            covariates,
            family=self.family,
            symmetric=self.symmetric,
            dispersion=self.dispersion,
            stacklevel=4,
        )
        setup, fit, penalty, separation = fit_dask(where, setup, mode, self.rank, self._options())
        if separation is not None:
            warn_of_separation(where, setup, separation, stacklevel=3)
        self.separation_ = separation
        self._store(setup, fit, replace(penalty, barrier=0.0))
        self._penalty = penalty
        self._store_result(fit.result)
        return self

    def _chosen_rank(self, setup: Setup) -> Any:
        """Return the rank that was given, or the one that a search finds."""
        if not isinstance(self.rank, str):
            return self.rank
        self.selection_ = select_rank(
            type(self).__name__,
            setup,
            self._options(),
            criterion=self.rank,
            candidates=self.candidates,
            search=self.search,
            folds=self.cv,
            n_jobs=self.n_jobs,
        )
        return self.selection_.best

    def _options(self) -> Options:
        bound = self.max_theta or (SEPARATED if self.constraint else None)
        penalty = Penalty(
            ridge=self.ridge,
            max_theta=bound if self.constraint else None,
            barrier=self.barrier if self.constraint == "barrier" else 0.0,
        )
        return Options(
            penalty=penalty,
            start=self.start,
            n_init=self.n_init,
            rule=StoppingRule(max_iter=self.max_iter, tol=self.tol),
            random_state=self.random_state,
        )
