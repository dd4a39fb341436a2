import warnings

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LinearRegression, PoissonRegressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from tesseral._errors import ShapeError
from tesseral.datasets import make_tensor_response
from tesseral.regress import SampleModeRegressor, TensorResponseRegressor


@parametrize_with_checks([SampleModeRegressor()])
def test_the_contract_of_scikit_learn_holds(estimator, check):
    with warnings.catch_warnings():
        # checks hand in duplicated and too few rows, of which a user is told
        warnings.filterwarnings("ignore", message=".*span only.*")
        check(estimator)


def samples(family="normal"):
    truth = make_tensor_response((60, 8, 7), 2, (4, 3, None), signal=4.0, random_state=0)
    eta = truth.linear_predictor
    rng = np.random.default_rng(0)
    y = (rng.random(eta.shape) < special.expit(eta)) * 1.0 if family == "binomial" else truth.tensor
    return truth.covariates[0], y, [truth.covariates[1], None]


def test_it_is_the_tensor_regression_with_samples_first():
    x, y, others = samples()
    model = SampleModeRegressor(
        TensorResponseRegressor(rank=2), covariates=others, fit_intercept=False
    ).fit(x, y)
    plain = TensorResponseRegressor(rank=2).fit(y, [x, *others])
    np.testing.assert_array_equal(model.predict(x), plain.predict())
    np.testing.assert_array_equal(model.coef_, plain.coef_)


def test_one_dimensional_responses_are_plain_regressions():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    y = x @ [1.0, -0.5, 0.0] + 2 + rng.standard_normal(200)
    found = SampleModeRegressor(TensorResponseRegressor(rank=3)).fit(x, y)
    expected = LinearRegression().fit(x, y)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-8)
    assert found.intercept_ == pytest.approx(expected.intercept_)
    counts = rng.poisson(np.exp(0.3 * x @ [1.0, -0.5, 0.0] + 0.5))
    weights = rng.uniform(0.5, 2, 200)
    found = SampleModeRegressor(TensorResponseRegressor(family="poisson", tol=1e-12))
    found.fit(x, counts, sample_weight=weights)
    expected = PoissonRegressor(alpha=0, tol=1e-8).fit(x, counts, sample_weight=weights)
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-4)


def test_it_works_in_searches_and_pipelines():
    x, y, others = samples()
    model = SampleModeRegressor(TensorResponseRegressor(rank=2), covariates=others)
    scores = cross_val_score(model, x, y, cv=3)
    assert scores.shape == (3,)
    assert np.isfinite(scores).all()
    search = GridSearchCV(model, {"regressor__rank": [1, 2, 3]}, cv=3).fit(x, y)
    assert search.best_params_["regressor__rank"] >= 2
    piped = make_pipeline(StandardScaler(), model).fit(x, y)
    np.testing.assert_allclose(piped.predict(x), model.fit(x, y).predict(x), atol=1e-6)


def test_scores_pass_over_missing_entries():
    x, y, others = samples()
    model = SampleModeRegressor(TensorResponseRegressor(rank=2), covariates=others)
    complete = model.fit(x, y).score(x, y)
    holes = np.where(np.random.default_rng(1).random(y.shape) < 0.1, np.nan, y)
    assert model.score(x, holes) == pytest.approx(complete, abs=0.05)
    assert model.fit(x, holes).score(x, holes) > 0.5 * complete


def test_covariates_for_other_modes_must_be_as_many_as_these():
    x, y, _ = samples()
    with pytest.raises(ShapeError, match=r"y of shape \(60, 8, 7\) needs 2 covariates"):
        SampleModeRegressor(covariates=[None]).fit(x, y)
