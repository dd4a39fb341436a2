"""The base of every estimator that clusters all modes of a tensor."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from tesseral._errors import EvidenceWarning, ParameterError, ShapeError
from tesseral.cluster._angles import Assignment
from tesseral.cluster._blocks import BlockFit
from tesseral.cluster._data import read
from tesseral.cluster._likelihood import Family
from tesseral.cluster._names import node_names
from tesseral.cluster._order import by_size
from tesseral.cluster._problem import Problem, state_counts, state_ties
from tesseral.cluster._select import Outcome, Task, select
from tesseral.cluster._source import Floats, Grouping
from tesseral.core._arrays import Array, like
from tesseral.core.estimator import TensorEstimator
from tesseral.core.labels import Labels
from tesseral.core.modeprod import multi_mode_product
from tesseral.core.random import Seed, as_generator
from tesseral.core.unfold import check_mode_of_shape


class TensorBlockClusterer(TensorEstimator):
    """Base of estimators that find clusters on every mode and the block means between them.

    A subclass says where labels begin, how they are improved, and which cluster a new node
    joins. Its constructor has at least the parameters annotated below.
    """

    _allow_missing: ClassVar[bool] = True

    n_clusters: int | Sequence[int] | str
    symmetric: str | bool | Sequence[Sequence[int]]
    tied: str
    family: str
    candidates: Sequence[Any] | None
    random_state: Seed

    def fit(self, X: Any, y: None = None, *, mask: Any = None) -> Any:  # noqa: ARG002
        """Find the clusters of every mode.

        Parameters
        ----------
        X : array of shape (d_0, ..., d_{K-1}), or sparse
            NumPy, torch or another framework of the array API; numbers of any real type. Or a
            SciPy sparse matrix, an array of the library ``sparse``, or a
            :class:`tesseral.core.CooTensor`, never made dense, whose entries that are not stored
            are zeros. Or a dask array, read a few chunks at a time. NaN stands for a missing
            entry, in a sparse tensor where it is stored. Labels of a pandas data frame or an
            xarray data array become ``node_names_``.
        y : None
            Not used; here for scikit-learn.
        mask : boolean array of the same shape, optional
            True where an entry is observed. Not for sparse data: store NaN there.

        Returns
        -------
        self

        Raises
        ------
        ParameterError, ShapeError, DtypeError
            If a parameter or the tensor cannot be used.

        Warns
        -----
        ConvergenceWarning
            If the iteration stopped before labels repeated.
        EvidenceWarning
            If the data cannot support the number of clusters asked for.
        """
        self._check_parameters()
        where = type(self).__name__
        data = read(where, X, mask)
        family = Family.of(where, self.family, data.facts)
        source, shape = data.source, data.source.shape
        ties = state_ties(where, self.symmetric, shape, data.find_ties)
        pooled = self.tied == "pool"
        if pooled:  # any mode of a group will do, and the last is the quickest to be left alone
            ties = tuple(group[::-1] for group in ties)
        problem = Problem(where=where, shape=shape, ties=ties, pooled=pooled)
        if problem.pooled and not isinstance(self.symmetric, str):
            source = source.pooled(ties)  # what "auto" ties is symmetric already
        fit = self._fit_task(Task(problem=problem, source=source, family=family))
        names = node_names(X)
        self.node_names_ = [np.arange(size) for size in shape] if names is None else names
        self.core_ = like(fit.core, data.reference)
        self.degrees_ = [like(theta, data.reference) for theta in fit.degrees]
        return self

    def predict(self, X: Any, mode: int = 0, *, mask: Any = None) -> Labels:
        """Return the clusters of new nodes of one mode.

        Parameters
        ----------
        X : array of shape (d_0, ..., n, ..., d_{K-1})
            Slices of n new nodes along ``mode``; the other modes are those of the fit.
        mode : int
            The mode of the new nodes.
        mask : boolean array of the same shape, optional
            True where an entry is observed.

        Returns
        -------
        int array of shape (n,)
            A node without signal gets the largest cluster, number 0.

        Raises
        ------
        ParameterError, ShapeError, DtypeError
            If X does not fit what was fitted.
        """
        check_is_fitted(self)
        where = f"{type(self).__name__}.predict"
        source = read(where, X, mask).source
        mode = check_mode_of_shape(where, self._shape, mode)
        before, after = self._shape[:mode], self._shape[mode + 1 :]
        if len(source.shape) != len(self._shape) or (
            source.shape[:mode] + source.shape[mode + 1 :] != before + after
        ):
            raise ShapeError(
                f"{where}: new nodes of mode {mode} need shape {(*before, 'n', *after)}, "
                f"got {source.shape}."
            )
        groupings = list(self._fit.groupings)
        # the new nodes' own clusters are not used along their mode
        blank = np.zeros(source.shape[mode], dtype=np.intp)
        groupings[mode] = Grouping(labels=blank, size=self._fit.sizes[mode])
        clusters = np.moveaxis(self._fit.core, mode, 0).reshape(self._fit.sizes[mode], -1)
        sums = source.sums([g.unweighted() for g in groupings], [mode])[mode]
        weighted = [g.unweighted() for g in groupings] if source.complete else groupings
        exposures = source.exposures(weighted, [mode])[mode]
        nodes = sums / np.where(exposures > 0, exposures, 1.0)
        return self._nearest(nodes, clusters)

    def reconstruct(self) -> Array:
        """Return the fitted mean of every entry, an array of the shape of the data."""
        check_is_fitted(self)
        matrices = [grouping.matrix(self.core_) for grouping in self._fit.groupings]
        return multi_mode_product(self.core_, matrices)

    def score(self, X: Any, y: None = None, *, mask: Any = None) -> float:  # noqa: ARG002
        """Return the mean log-likelihood of the observed entries of a tensor under the fit.

        Parameters
        ----------
        X : array of the shape that was fitted
            NaN stands for a missing entry.
        y : None
            Not used; here for scikit-learn.
        mask : boolean array of the same shape, optional
            True where an entry is observed.

        Raises
        ------
        ParameterError, ShapeError, DtypeError
            If X does not fit what was fitted.
        """
        check_is_fitted(self)
        where = f"{type(self).__name__}.score"
        data = read(where, X, mask)
        if data.source.shape != self._shape:
            raise ShapeError(f"{where}: needs shape {self._shape}, got {data.source.shape}.")
        family = Family.of(where, self.family, data.facts)
        source = data.source
        found = family.evaluate(source, self._fit, variance=self.noise_variance_)
        return found.log_likelihood / source.n_observed

    def _fit_task(self, task: Task) -> BlockFit:
        """Find clusters, set what is learned, and return the fit."""
        problem = task.problem
        if task.source.squared_norm == 0:
            raise ParameterError(
                f"{problem.where}: every entry is zero, so no node has a direction to be "
                "clustered by."
            )
        seed = int(as_generator(self.random_state).integers(2**63))

        def run(counts: tuple[int, ...]) -> Outcome:
            # every number of clusters sees the same random numbers, whatever else is tried
            return self._attempt(task, counts, np.random.default_rng(seed))

        if isinstance(self.n_clusters, str):
            outcome, self.bic_path_ = select(problem, self.candidates, run)
        else:
            outcome = run(state_counts(problem, self.n_clusters))
            self.bic_path_ = {outcome.fit.sizes: outcome.criterion}
        self._shape, self._fit = problem.shape, outcome.fit
        self.labels_ = [grouping.labels for grouping in outcome.fit.groupings]
        self.start_labels_ = [grouping.labels for grouping in outcome.start]
        self.n_clusters_ = outcome.fit.sizes
        self.symmetric_ = tuple(sorted(tuple(sorted(group)) for group in problem.ties))
        self.log_likelihood_ = outcome.evaluation.log_likelihood
        self.noise_variance_, self.bic_ = outcome.evaluation.variance, outcome.criterion
        self._warn_of_refilled(outcome.assignment)
        self.reason_ = outcome.assignment.result.reason
        self._store_result(outcome.assignment.result)
        return outcome.fit

    def _attempt(self, task: Task, counts: tuple[int, ...], rng: np.random.Generator) -> Outcome:
        start = self._start(task, counts, rng)
        assignment = self._improve(task, start)
        fit = by_size(self._finish(task, assignment), task.problem.ties)
        evaluation = task.family.evaluate(task.source, fit)
        return Outcome(
            start=start,
            assignment=assignment,
            fit=fit,
            evaluation=evaluation,
            criterion=evaluation.criterion(task.source, fit, task.problem.ties),
        )

    def _warn_of_refilled(self, assignment: Assignment) -> None:
        for mode, count in enumerate(assignment.refilled):
            if count:
                warnings.warn(
                    f"{type(self).__name__}: {count} of the clusters of mode {mode} were empty "
                    "and were given the nodes that fitted worst; the data show fewer clusters "
                    "than were asked for.",
                    EvidenceWarning,
                    stacklevel=4,
                )
                return

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    @abstractmethod
    def _start(
        self, task: Task, counts: tuple[int, ...], rng: np.random.Generator
    ) -> list[Grouping]:
        """Return the labels to begin with."""

    @abstractmethod
    def _improve(self, task: Task, start: list[Grouping]) -> Assignment:
        """Return the labels that they lead to."""

    @abstractmethod
    def _finish(self, task: Task, assignment: Assignment) -> BlockFit:
        """Return block means and, if nodes differ in it, degrees for given labels."""

    @abstractmethod
    def _nearest(self, nodes: Floats, clusters: Floats) -> Labels:
        """Return the cluster of each node, from its mean row and the clusters' rows."""
