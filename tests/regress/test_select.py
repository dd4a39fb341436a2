import joblib
import numpy as np
import pytest

from regress.oracles import entry_log_likelihood
from tesseral._errors import ParameterError
from tesseral.datasets import make_tensor_response
from tesseral.regress import TensorResponseRegressor
from tesseral.regress._select import fold_labels, reweighted
from tesseral.regress._setup import prepare


def planted(rank=(2, 3, 2), seed=0, **options):
    options = {"signal": 8.0, **options}
    truth = make_tensor_response((20, 18, 16), rank, (6, None, 5), random_state=seed, **options)
    return truth.tensor, list(truth.covariates)


@pytest.mark.parametrize("criterion", ["bic", "cv"])
def test_the_planted_rank_is_found_without_trying_all(criterion):
    y, covariates = planted()
    model = TensorResponseRegressor(rank=criterion, random_state=0).fit(y, covariates)
    # cross-validation is known to take a little more than it needs
    excess = np.subtract(model.rank_, (2, 3, 2))
    assert (excess >= 0).all()
    assert excess.sum() <= (0 if criterion == "bic" else 1)
    assert len(model.selection_.trials) < 60  # of more than 200 that fit each other
    assert len({trial.rank for trial in model.selection_.trials}) == len(model.selection_.trials)


def test_bic_of_a_trial_is_that_of_the_fit():
    y, covariates = planted(family="binomial")
    model = TensorResponseRegressor(rank="bic", family="binomial", candidates=3, tol=1e-6)
    model.fit(y, covariates)
    best = model.selection_.table()[0]
    assert best["rank"] == model.rank_
    assert best["bic"] == pytest.approx(model.bic_, rel=1e-6)
    scores = [row["bic"] for row in model.selection_.table()]
    assert scores == sorted(scores)


def test_ranks_are_scored_by_entries_that_were_left_out():
    y, covariates = planted(family="poisson", signal=2.0)
    model = TensorResponseRegressor(
        rank="cv", family="poisson", candidates=[(2, 2, 2)], cv=3, random_state=0, tol=1e-6
    ).fit(y, covariates)
    setup = prepare("here", y, covariates, family="poisson")
    labels = fold_labels(setup, 3, 0)
    expected = 0.0
    for fold in range(3):
        kept = np.where(labels == fold, np.nan, y)
        trained = TensorResponseRegressor(rank=2, family="poisson", tol=1e-6).fit(kept, covariates)
        out = labels == fold
        eta = trained.predict(kind="link")
        expected += entry_log_likelihood("poisson", y[out], eta[out]).sum()
    (trial,) = model.selection_.trials
    assert trial.log_likelihood == pytest.approx(expected, rel=1e-6)
    assert trial.score == pytest.approx(-2 * expected / y.size, rel=1e-6)
    assert trial.error > 0


@pytest.mark.parametrize("family", ["normal", "gamma"])
def test_the_dispersion_comes_from_the_entries_that_were_kept(family):
    rng = np.random.default_rng(0)
    y = rng.gamma(2.0, 1.0, (9, 8, 7))
    setup = prepare("here", y, None, family=family)
    kept = rng.random(y.shape) < 0.5
    half = reweighted(setup, kept)
    kernels = float(setup.problem.family.terms(np, y[kept], 0 * y[kept], 1.0).kernel.sum())
    found = half.problem.family.held_out(kernels, half.problem.seen, 0.4)
    expected = entry_log_likelihood(family, y[kept], 0 * y[kept], 0.4).sum()
    assert found == pytest.approx(expected, rel=1e-10)


def test_entries_that_are_one_are_left_out_together():
    y = make_tensor_response(
        (8, 8, 4), 2, None, symmetric=[(0, 1)], symmetric_noise=True, random_state=0
    ).tensor
    setup = prepare("here", y, None, family="normal", symmetric=[(0, 1)])
    labels = fold_labels(setup, 4, 0)
    np.testing.assert_array_equal(labels, labels.swapaxes(0, 1))
    model = TensorResponseRegressor(rank="bic", symmetric=[(0, 1)], candidates=3).fit(y)
    assert all(trial.rank[0] == trial.rank[1] for trial in model.selection_.trials)


def test_the_grid_tries_every_choice_that_fits():
    y, covariates = planted()
    model = TensorResponseRegressor(
        rank="bic", search="grid", candidates=[[1, 2], [2, 3], [2]]
    ).fit(y, covariates)
    ranks = {trial.rank for trial in model.selection_.trials}
    assert ranks == {(1, 2, 2), (2, 2, 2), (2, 3, 2)}  # (1, 3, 2) does not fit itself


def test_fits_may_run_side_by_side_with_the_same_result():
    y, covariates = planted()
    options = {"rank": "bic", "candidates": [(1, 1, 1), (2, 2, 2)]}
    one = TensorResponseRegressor(**options).fit(y, covariates)
    with joblib.parallel_config(backend="threading"):
        two = TensorResponseRegressor(n_jobs=2, **options).fit(y, covariates)
    assert one.selection_ == two.selection_


@pytest.mark.parametrize(
    ("candidates", "words"),
    [
        ([(9, 9, 9)], r"rank \(9, 9, 9\) among candidates does not fit"),
        ([], "candidates must not be empty"),
        ([[1], [2]], "candidates must be a number, tuples of 3 ranks, or 3 lists"),
        ([[1], [2], [5]], "no rank among candidates fits the data"),
    ],
)
def test_candidates_that_do_not_fit_are_refused(candidates, words):
    y, covariates = planted()
    with pytest.raises(ParameterError, match=f"^TensorResponseRegressor: {words}"):
        TensorResponseRegressor(rank="bic", candidates=candidates).fit(y, covariates)
