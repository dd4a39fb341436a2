import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.budget import assert_within_budget
from support.frameworks import every_framework, to_numpy
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.kronecker import balanced_factors, kronecker_apply
from tesseral.core.modeprod import multi_mode_product


def kronecker_matrix(factors):
    matrix = np.eye(1)
    for factor in factors:
        matrix = np.kron(matrix, factor)
    return matrix


sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
batches = st.lists(st.integers(0, 3), max_size=2)


def draw_problem(sizes, batch, seed=0):
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal(size) for size in sizes]
    return rng.standard_normal((*batch, np.prod([n for n, _ in sizes]))), factors


@given(sizes, batches)
def test_applying_factors_equals_multiplying_by_the_formed_product(sizes, batch):
    x, factors = draw_problem(sizes, batch)
    np.testing.assert_allclose(
        kronecker_apply(x, factors), x @ kronecker_matrix(factors), atol=1e-11
    )


@given(sizes)
def test_a_kronecker_product_is_a_set_of_mode_products(sizes):
    x, factors = draw_problem(sizes, ())
    tensor = x.reshape([n for n, _ in sizes])
    np.testing.assert_allclose(
        kronecker_apply(x, factors),
        multi_mode_product(tensor, factors, transpose=True).reshape(-1),
        atol=1e-11,
    )


def test_two_factors_act_as_left_transpose_and_right():
    rng = np.random.default_rng(0)
    a, b, x = rng.standard_normal((3, 2)), rng.standard_normal((4, 5)), rng.standard_normal((3, 4))
    np.testing.assert_allclose(
        kronecker_apply(x.reshape(-1), [a, b]), (a.T @ x @ b).reshape(-1), atol=1e-13
    )


@pytest.mark.parametrize("position", [0, 1, 2])
def test_none_is_an_identity_of_the_size_left_over(position):
    x, factors = draw_problem([(2, 3), (3, 3), (4, 2)], (5,))
    with_identity = list(factors)
    with_identity[position] = np.eye(len(factors[position]))
    with_none = list(factors)
    with_none[position] = None
    np.testing.assert_allclose(
        kronecker_apply(x, with_none), kronecker_apply(x, with_identity), atol=1e-13
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_data_type_is_kept_and_error_is_that_of_plain_code(dtype, order):
    x, factors = draw_problem([(16, 16), (24, 24)], (7,))
    oracle = x.astype(np.longdouble) @ kronecker_matrix(factors).astype(np.longdouble)
    x = np.asarray(x, dtype=dtype, order=order)
    factors = [np.asarray(factor, dtype=dtype, order=order) for factor in factors]
    got = kronecker_apply(x, factors)
    assert got.dtype == dtype
    peer = x @ kronecker_matrix(factors).astype(dtype)
    assert_within_budget(got, oracle, peer)


@every_framework
def test_every_framework_gives_the_numbers_of_the_formed_product(make):
    x, factors = draw_problem([(2, 3), (3, 3), (4, 2)], (2, 5))
    got = to_numpy(kronecker_apply(make(x), [make(factors[0]), None, make(factors[2])]))
    factors[1] = np.eye(3)
    np.testing.assert_allclose(got, x @ kronecker_matrix(factors), atol=1e-12)


def test_gradients_reach_the_input_and_every_factor():
    x, factors = draw_problem([(2, 3), (3, 3), (2, 2)], (2, 2))
    leaves = [torch.from_numpy(array).requires_grad_() for array in (x, *factors)]
    assert torch.autograd.gradcheck(lambda x, *factors: kronecker_apply(x, factors), leaves)


@pytest.mark.parametrize(
    ("shape", "factors", "error", "message"),
    [
        ((6,), [], ParameterError, "at least one factor"),
        ((6,), [None, np.eye(2), None], ParameterError, "at most one factor may be None, got 2"),
        ((), [np.eye(1)], ShapeError, r"x of shape \(\.\.\., n\)"),
        ((6,), [np.ones(6)], ShapeError, r"matrices as factors.*\[\(6,\)\]"),
        ((6,), [np.eye(2), np.eye(2)], ShapeError, "must multiply to 6"),
        ((6,), [np.eye(4), None], ShapeError, "must multiply to 6"),
        ((6,), [np.ones((0, 2)), None], ShapeError, "must multiply to 6"),
        ((6,), [[[1.0]]], DtypeError, "needs arrays.*got list"),
        ((6,), [torch.eye(6)], DtypeError, "one framework, got numpy and torch"),
    ],
)
def test_what_does_not_fit_is_refused(shape, factors, error, message):
    with pytest.raises(error, match=message):
        kronecker_apply(np.ones(shape), factors)


@given(st.integers(1, 20_000))
def test_balanced_factors_have_the_smallest_sum(n):
    n1, n2 = balanced_factors(n)
    assert n1 * n2 == n
    assert n1 <= n2
    assert n1 + n2 == min(k + n // k for k in range(1, n + 1) if n % k == 0)


@pytest.mark.parametrize(
    ("n", "factors"),
    [(1, (1, 1)), (7, (1, 7)), (4096, (64, 64)), (5120, (64, 80)), (11008, (86, 128))],
)
def test_balanced_factors_of_model_widths(n, factors):
    assert balanced_factors(n) == factors


@pytest.mark.parametrize("n", [0, -4])
def test_nothing_below_one_has_factors(n):
    with pytest.raises(ParameterError, match=f"at least 1, got {n}"):
        balanced_factors(n)
