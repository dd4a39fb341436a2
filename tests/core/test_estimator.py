import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from tesseral._errors import ConvergenceWarning, ParameterError
from tesseral.core import StoppingRule, as_generator, block_means
from tesseral.core.constraints import SEED, integer, real
from tesseral.core.estimator import TensorEstimator


class BlockAverager(TensorEstimator):
    """Means over random clusters of every mode, approached step by step."""

    _constraints: ClassVar = {
        "n_clusters": (integer(1),),
        "step": (real(0, 1, exclude_low=True),),
        "max_iter": (integer(1),),
        "random_state": (SEED,),
    }

    def __init__(self, n_clusters=2, *, step=0.5, max_iter=100, random_state=None):
        self.n_clusters = n_clusters
        self.step = step
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X, y=None, *, mask=None):  # noqa: ARG002
        self._check_parameters()
        values, observed = self._check_tensor(X, mask)
        generator = as_generator(self.random_state)
        self.labels_ = [generator.integers(self.n_clusters, size=size) for size in values.shape]
        weights = None if observed is None else 1.0 * observed
        counts = [self.n_clusters] * values.ndim
        target = block_means(values, self.labels_, counts, weights=weights, empty=0.0)
        self.core_ = 0 * target
        progress = StoppingRule(max_iter=self.max_iter, tol=1e-6).start()
        while not progress.done:
            self.core_ = self.core_ + self.step * (target - self.core_)
            progress = progress.update(float((self.core_**2).sum()))
        self._store_result(progress.result)
        return self


class PatientBlockAverager(BlockAverager):
    """The same, for data with missing entries."""

    _allow_missing: ClassVar = True


EXPECTED_FAILURES = {
    "check_n_features_in": "a tensor has no sample axis, so no number of features either",
    "check_n_features_in_after_fitting": "a tensor has no number of features",
    "check_estimators_empty_data_messages": "a message about modes, not samples and features",
}


@parametrize_with_checks(
    [BlockAverager(random_state=0), PatientBlockAverager(random_state=0)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
def test_the_contract_of_scikit_learn_holds(estimator, check):
    check(estimator)


def test_tensors_of_any_order_and_framework_are_fitted_alike():
    tensor = np.random.default_rng(0).standard_normal((4, 5, 3, 2))
    model = BlockAverager(random_state=0).fit(tensor)
    by_torch = BlockAverager(random_state=0).fit(torch.from_numpy(tensor))
    assert model.core_.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(by_torch.core_.numpy(), model.core_, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_clusters", 0, "an integer at least 1; got 0"),
        ("step", 0.0, "a finite number above 0 and at most 1; got 0.0"),
        (
            "random_state",
            -1,
            r"a seed \(None, an integer at least 0 or a NumPy generator\); got -1",
        ),
    ],
)
def test_parameters_are_checked_in_fit_and_only_there(name, value, words):
    model = BlockAverager(**{name: value})
    assert getattr(model, name) == value
    with pytest.raises(ParameterError, match=f"^BlockAverager: parameter {name} must be {words}"):
        model.fit(np.ones((3, 3)))


def test_a_parameter_without_a_constraint_does_not_pass_silently():
    class Careless(BlockAverager):
        _constraints: ClassVar = {}

    with pytest.raises(KeyError, match="max_iter"):
        Careless().fit(np.ones((3, 3)))


def test_the_name_of_the_estimator_is_in_messages_about_the_tensor():
    with pytest.raises(ParameterError, match=r"^BlockAverager: .* infinity or NaN"):
        BlockAverager().fit([[1.0, np.nan]])


def test_missing_entries_are_left_out_whether_masked_or_nan():
    tensor = np.random.default_rng(0).standard_normal((4, 5))
    holes = tensor.copy()
    holes[0, 1] = np.nan
    marked = PatientBlockAverager(random_state=0).fit(holes)
    masked = BlockAverager(random_state=0).fit(tensor, mask=~np.isnan(holes))
    np.testing.assert_array_equal(masked.core_, marked.core_)
    assert (marked.core_ != BlockAverager(random_state=0).fit(tensor).core_).any()


def test_how_the_iteration_ended_is_learned():
    model = BlockAverager(random_state=0).fit(np.ones((3, 3)))
    assert model.converged_
    assert model.n_iter_ == len(model.history_) > 1


def test_running_out_of_iterations_warns_once_from_fit():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = BlockAverager(max_iter=1, random_state=0).fit(np.ones((3, 3)))
    assert [w.category for w in caught] == [ConvergenceWarning]
    assert str(caught[0].message).startswith("BlockAverager: stopped after 1 iteration: ")
    assert caught[0].filename == __file__
    assert not model.converged_
