import math

import numpy as np
import pytest

from tesseral._errors import ParameterError
from tesseral.core.constraints import (
    BOOLEAN,
    NONE,
    SEED,
    check_parameter,
    choice,
    integer,
    real,
    sequence_of,
)


@pytest.mark.parametrize(
    ("constraint", "accepted", "refused"),
    [
        (integer(1), [1, 7, np.int32(3)], [0, -1, 1.0, True, np.True_, "1", None]),
        (integer(1, 3), [1, 3], [0, 4]),
        (real(), [0, -1.5, np.float32(2)], [math.nan, math.inf, True, np.True_, "1", None, 1j]),
        (real(0), [0, 0.5, 10], [-1e-9, -math.inf]),
        (real(0, 1), [0, 1], [1.1]),
        (real(0, exclude_low=True), [1e-300], [0, 0.0]),
        (choice("a", "b"), ["a", "b"], ["c", "", None, ["a"], 1]),
        (BOOLEAN, [True, np.False_], [0, 1, None, "yes"]),
        (NONE, [None], [0, False, ""]),
        (
            SEED,
            [None, 0, np.int64(3), np.random.default_rng(0), np.random.RandomState(0)],
            [-1, 1.0, True, "0"],
        ),
        (
            sequence_of(integer(1)),
            [[1, 2], (3,), np.array([1, 2]), []],
            [[0], [1.0], 1, None, "12", {1: 2}, np.ones((2, 2), dtype=int)],
        ),
        (sequence_of(integer(1), length=2), [[1, 2]], [[1], [1, 2, 3]]),
        (sequence_of(choice("a"), length=1), [["a"]], ["a"]),
    ],
    ids=lambda value: getattr(value, "description", ""),
)
def test_a_constraint_accepts_what_it_describes(constraint, accepted, refused):
    for value in accepted:
        assert constraint.accepts(value), value
    for value in refused:
        assert not constraint.accepts(value), value


@pytest.mark.parametrize(
    ("constraint", "description"),
    [
        (integer(1), "an integer at least 1"),
        (integer(1, 3), "an integer from 1 to 3"),
        (real(), "a finite number"),
        (real(0), "a finite number at least 0"),
        (real(high=2), "a finite number at most 2"),
        (real(0, 1, exclude_low=True), "a finite number above 0 and at most 1"),
        (choice("a", "b"), "'a' or 'b'"),
        (sequence_of(integer(1)), "a sequence whose items are each an integer at least 1"),
        (
            sequence_of(integer(1), length=3),
            "a sequence of length 3 whose items are each an integer at least 1",
        ),
    ],
)
def test_a_constraint_describes_itself(constraint, description):
    assert constraint.description == description


def test_one_of_several_constraints_is_enough():
    check_parameter("Method", "n", 2, integer(1), NONE)
    check_parameter("Method", "n", None, integer(1), NONE)


def test_the_message_says_which_parameter_of_what_must_be_what_and_got_what():
    with pytest.raises(
        ParameterError,
        match=r"^Method: parameter n must be an integer at least 1, or None; got 'two'\.$",
    ):
        check_parameter("Method", "n", "two", integer(1), NONE)
