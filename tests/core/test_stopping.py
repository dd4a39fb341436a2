import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch

from tesseral._errors import ConvergenceWarning, ParameterError
from tesseral.core import Reason, StoppingRule


def run(rule, values, labels=None, start=None):
    """Feed values (and labels) until the rule stops, or all are used up."""
    progress = rule.start(start)
    for i, value in enumerate(values):
        progress = progress.update(value, None if labels is None else labels[i])
        if progress.done:
            break
    return progress


@pytest.mark.parametrize(
    ("values", "n_iter"),
    [
        ([1.0, 2.0, 2.001, 2.0011], 3),
        ([-1.0, -2.0, -2.001], 3),
        ([1e-9, 2e-9, 2.001e-9], 3),  # relative: small numbers are not small changes
        ([5.0, 5.0], 2),
        ([0.0, 0.0], 2),
    ],
)
def test_a_small_relative_change_converges(values, n_iter):
    progress = run(StoppingRule(tol=1e-3), values)
    assert progress.reason is Reason.SMALL_CHANGE
    assert progress.result.converged
    assert progress.result.n_iter == n_iter
    assert progress.result.history == tuple(values[:n_iter])


def test_the_value_before_the_first_iteration_counts_but_is_no_iteration():
    result = run(StoppingRule(tol=1e-3), [1.0], start=1.0).result
    assert (result.n_iter, result.history) == (1, (1.0, 1.0))


def test_without_tolerance_equal_values_go_on():
    assert run(StoppingRule(tol=None, max_iter=9), [1.0] * 5).reason is None


def test_the_iterations_run_out():
    result = run(StoppingRule(max_iter=3), [1.0, 2.0, 3.0, 4.0]).result
    assert (result.reason, result.converged, result.n_iter) == (Reason.MAX_ITER, False, 3)


def test_arriving_in_the_last_iteration_is_arriving():
    assert run(StoppingRule(max_iter=2), [1.0, 1.0]).reason is Reason.SMALL_CHANGE


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_objective_that_is_not_finite_stops_unconverged(value):
    result = run(StoppingRule(), [1.0, value, 2.0]).result
    assert (result.reason, result.converged, result.n_iter) == (Reason.NOT_FINITE, False, 2)


A, B, C = ([np.array(z)] for z in ([0, 1, 1], [1, 1, 0], [0, 0, 1]))


def test_labels_that_stay_converge():
    result = run(StoppingRule(tol=None), [3.0, 2.0, 1.0], [A, B, B]).result
    assert (result.reason, result.converged, result.n_iter) == (Reason.SAME_LABELS, True, 3)


def test_labels_that_come_back_later_go_in_circles():
    result = run(StoppingRule(tol=None), [4.0, 3.0, 2.0, 1.0], [A, B, C, A]).result
    assert (result.reason, result.converged, result.n_iter) == (Reason.CYCLING_LABELS, False, 4)


def test_labels_at_the_start_count():
    progress = StoppingRule().start(labels=A).update(1.0, A)
    assert progress.reason is Reason.SAME_LABELS


@pytest.mark.parametrize(
    "other",
    [
        [np.array([0, 1]), np.array([1, 1, 0])],
        [np.array([0, 1, 1]), np.array([0, 1])],
        [np.array([0, 1, 1, 1, 0])],
    ],
)
def test_labels_are_compared_mode_by_mode(other):
    labels = [np.array([0, 1, 1]), np.array([1, 0])]
    assert StoppingRule().start(labels=labels).update(1.0, other).reason is None


def test_labels_are_compared_by_value_not_by_kind():
    progress = StoppingRule().start(labels=[np.array([0, 1], dtype=np.int32)])
    assert progress.update(1.0, [torch.tensor([0, 1])]).reason is Reason.SAME_LABELS


def test_an_update_leaves_the_state_before_it_alone():
    start = StoppingRule().start(1.0)
    start.update(1.0)
    assert (start.done, start.history, start.n_iter) == (False, (1.0,), 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        start.n_iter = 3


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_says_what_happened_and_warns_exactly_if_unconverged(reason):
    result = dataclasses.replace(run(StoppingRule(), [1.0, 1.0]).result, reason=reason)
    assert len(reason.text) > 20
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result.warn_unless_converged("method")
    if reason.converged:
        assert caught == []
    else:
        assert [w.category for w in caught] == [ConvergenceWarning]
        assert str(caught[0].message) == f"method: stopped after 2 iterations: {reason.text}."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_iter": 0}, "max_iter must be an integer at least 1; got 0"),
        ({"max_iter": 2.0}, "max_iter must be an integer at least 1; got 2.0"),
        ({"tol": -1.0}, "tol must be a finite number at least 0, or None; got -1.0"),
        ({"tol": math.nan}, "tol must be a finite number at least 0, or None; got nan"),
    ],
)
def test_a_rule_out_of_range_is_refused(options, message):
    with pytest.raises(ParameterError, match=f"^StoppingRule: parameter {message}"):
        StoppingRule(**options)
