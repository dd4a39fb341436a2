import warnings

import numpy as np
import pytest
import tensorly.decomposition
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.frameworks import every_framework, to_numpy
from tesseral._errors import ConvergenceWarning, DtypeError, ParameterError, ShapeError
from tesseral.core import (
    Reason,
    StoppingRule,
    TuckerTensor,
    hooi,
    hosvd,
    left_singular_vectors,
    orthonormality_error,
    unfold,
)


def noisy_tucker(shape, rank, noise, seed=0):
    rng = np.random.default_rng(seed)
    factors = tuple(
        np.linalg.qr(rng.standard_normal(size))[0] for size in zip(shape, rank, strict=True)
    )
    signal = TuckerTensor(core=rng.standard_normal(rank), factors=factors).to_tensor()
    return signal + noise * rng.standard_normal(shape)


shapes_and_ranks = st.lists(st.integers(2, 5), min_size=2, max_size=4).flatmap(
    lambda shape: st.tuples(
        st.just(tuple(shape)), st.integers(1, min(shape)).map(lambda r: (r,) * len(shape))
    )
)


@given(shapes_and_ranks, st.booleans(), st.sampled_from(["auto", "exact", "randomized"]))
def test_a_tensor_of_low_rank_is_recovered_exactly(problem, sequential, svd):
    shape, rank = problem
    tensor = noisy_tucker(shape, rank, noise=0)
    got = hosvd(tensor, rank, sequential=sequential, svd=svd, random_state=0)
    assert (got.shape, got.rank) == (shape, rank)
    np.testing.assert_allclose(got.to_tensor(), tensor, atol=1e-10)
    for factor in got.factors:
        assert orthonormality_error(factor) < 1e-12


def test_hosvd_factors_are_the_leading_vectors_of_the_unfoldings():
    tensor = noisy_tucker((5, 6, 7), (3, 3, 3), noise=0.3)
    for mode, factor in enumerate(hosvd(tensor, (2, 2, 2)).factors):
        np.testing.assert_allclose(
            factor, left_singular_vectors(unfold(tensor, mode), 2), atol=1e-10
        )


@pytest.mark.parametrize("sequential", [False, True])
def test_the_squared_error_is_at_most_the_sum_of_the_tails(sequential):
    tensor = noisy_tucker((5, 6, 7), (3, 3, 3), noise=0.5)
    tails = [
        (np.linalg.svd(unfold(tensor, mode), compute_uv=False)[2:] ** 2).sum() for mode in range(3)
    ]
    error = ((hosvd(tensor, (2, 2, 2), sequential=sequential).to_tensor() - tensor) ** 2).sum()
    assert max(tails) <= error <= sum(tails)


def test_sequential_truncation_takes_the_mode_that_shrinks_most_first(monkeypatch):
    from tesseral.core import tucker

    seen = []

    def spy(matrix, rank, **options):
        seen.append(matrix.shape)
        return left_singular_vectors(matrix, rank, **options)

    monkeypatch.setattr(tucker, "left_singular_vectors", spy)
    hosvd(np.random.default_rng(0).standard_normal((4, 9, 6)), (3, 2, 4), sequential=True)
    assert seen == [(9, 24), (6, 8), (4, 8)]


@given(shapes_and_ranks, st.integers(0, 2**32 - 1), st.sampled_from(["hosvd", "sequential"]))
def test_hooi_never_lowers_the_fit(problem, seed, start):
    shape, rank = problem
    tensor = np.random.default_rng(seed).standard_normal(shape)
    rule = StoppingRule(max_iter=8, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # some need more iterations
        got, result = hooi(tensor, rank, start=start, rule=rule, svd="exact")
    assert (np.diff(result.history) >= -1e-12).all()
    error = ((got.to_tensor() - tensor) ** 2).sum() / (tensor**2).sum()
    np.testing.assert_allclose(1 - error, result.history[-1], atol=1e-10)


@every_framework
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_hooi_reaches_the_fit_of_tensorly(make, dtype, order):
    tensor = noisy_tucker((8, 9, 10), (3, 2, 4), noise=0.1)
    core, factors = tensorly.decomposition.tucker(
        tensor, (3, 2, 4), init="svd", n_iter_max=200, tol=1e-12
    )
    expected = tensorly.tucker_to_tensor((core, factors))
    given = make(np.asarray(tensor, dtype=dtype, order=order))
    got, result = hooi(given, (3, 2, 4), rule=StoppingRule(tol=1e-7))
    assert result.reason is Reason.SMALL_CHANGE
    assert to_numpy(got.core).dtype == dtype
    np.testing.assert_allclose(
        to_numpy(got.to_tensor()), expected, atol=1e-4 if dtype == "float64" else 1e-3
    )


def test_hooi_starts_from_given_factors():
    tensor = noisy_tucker((5, 6, 7), (2, 2, 2), noise=0.1)
    best, _ = hooi(tensor, (2, 2, 2))
    again, result = hooi(tensor, (2, 2, 2), start=best.factors)
    assert result.n_iter <= 2
    np.testing.assert_allclose(again.to_tensor(), best.to_tensor(), atol=1e-5)


def test_permuting_the_modes_permutes_the_decomposition():
    tensor = noisy_tucker((5, 6, 7), (2, 3, 4), noise=0.05)
    got, _ = hooi(tensor, (2, 3, 4))
    turned, _ = hooi(tensor.transpose(2, 0, 1), (4, 2, 3))
    np.testing.assert_allclose(turned.to_tensor(), got.to_tensor().transpose(2, 0, 1), atol=1e-3)


def test_running_out_of_iterations_is_a_result_and_one_warning():
    tensor = np.random.default_rng(0).standard_normal((6, 6, 6))
    with pytest.warns(ConvergenceWarning, match="^hooi: stopped after 1 iteration: ") as caught:
        _, result = hooi(tensor, (2, 2, 2), rule=StoppingRule(max_iter=1, tol=0))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert (result.converged, result.reason, result.n_iter) == (False, Reason.MAX_ITER, 1)
    assert len(result.history) == 2


def test_nothing_fits_nothing_perfectly():
    got, result = hooi(np.zeros((3, 4, 5)), (2, 2, 2))
    assert result.history[-1] == 1.0
    assert got.norm() == 0.0


def test_gradients_pass_through_the_decomposition():
    tensor = torch.tensor(noisy_tucker((3, 4, 3), (2, 2, 2), noise=0.1), requires_grad=True)
    rule = StoppingRule(tol=1e-2)
    assert torch.autograd.gradcheck(
        lambda x: hosvd(x, (2, 2, 2), sequential=True).to_tensor(), tensor
    )
    assert torch.autograd.gradcheck(lambda x: hooi(x, (2, 2, 2), rule=rule)[0].to_tensor(), tensor)


def test_the_norm_is_that_of_the_tensor_for_any_factors():
    rng = np.random.default_rng(0)
    tucker = TuckerTensor(
        core=rng.standard_normal((2, 3)),
        factors=(rng.standard_normal((4, 2)), rng.standard_normal((5, 3))),
    )
    np.testing.assert_allclose(tucker.norm(), np.linalg.norm(tucker.to_tensor()))


@pytest.mark.parametrize("shapes", [[(4, 2)], [(4, 2), (5, 2)], [(4, 2), (3,)]])
def test_factors_that_do_not_fit_the_core_are_refused(shapes):
    with pytest.raises(ShapeError, match=r"core of shape \(2, 3\) needs one factor"):
        TuckerTensor(core=np.ones((2, 3)), factors=tuple(np.ones(shape) for shape in shapes))


@pytest.mark.parametrize("function", [hosvd, hooi], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ((2, 2), r"rank must be a sequence of length 3 .* integer at least 1; got \(2, 2\)"),
        ((2, 2, 0), "rank must be a sequence of length 3"),
        (2, "rank must be a sequence of length 3"),
        ((4, 2, 2), "mode 0 can have at most rank 3"),
        ((1, 5, 2), "mode 1 can have at most rank 2"),
    ],
)
def test_a_rank_that_no_such_tensor_has_is_refused(function, rank, message):
    with pytest.raises(ParameterError, match=f"^{function.__name__}: .*{message}"):
        function(np.ones((3, 5, 5)), rank)


@pytest.mark.parametrize("function", [hosvd, hooi], ids=lambda f: f.__name__)
def test_integers_are_not_decomposed(function):
    with pytest.raises(DtypeError, match=f"{function.__name__}: needs a real floating-point"):
        function(np.ones((3, 5), dtype=int), (1, 1))


def test_a_start_that_does_not_fit_is_refused():
    tensor = np.ones((3, 4))
    with pytest.raises(ParameterError, match="start must be 'hosvd' or 'sequential'; got 'zeros'"):
        hooi(tensor, (1, 1), start="zeros")
    with pytest.raises(ShapeError, match=r"shapes \[\(3, 1\), \(4, 1\)\], got \[\(3, 1\)\]"):
        hooi(tensor, (1, 1), start=[np.ones((3, 1))])
    with pytest.raises(ParameterError, match=r"orthonormal columns; max \|U'U - I\| is 3.0e\+00"):
        hooi(tensor, (1, 1), start=[np.ones((3, 1)) / 3**0.5, np.ones((4, 1))])
