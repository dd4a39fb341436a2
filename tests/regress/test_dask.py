import dask
import dask.array as da
import numpy as np
import pytest

from regress.oracles import draw, entry_log_likelihood
from tesseral._errors import InformationError, ParameterError, SeparationWarning
from tesseral.datasets import load_nations, make_tensor_response
from tesseral.regress import TensorResponseRegressor


@pytest.fixture(autouse=True)
def _in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def planted(family="binomial"):
    truth = make_tensor_response((12, 40, 10), 2, (3, None, 3), signal=3.0, random_state=0)
    y = draw(family, truth.linear_predictor, np.random.default_rng(0), 0.3)
    return y, list(truth.covariates)


@pytest.mark.parametrize("family", ["normal", "binomial", "poisson", "negative_binomial", "gamma"])
@pytest.mark.parametrize("missing", [False, True])
def test_chunks_give_the_fit_of_the_whole(family, missing):
    y, covariates = planted(family)
    if missing:
        y[np.random.default_rng(1).random(y.shape) < 0.1] = np.nan
    options = {"rank": 2, "family": family, "tol": 1e-9}
    whole = TensorResponseRegressor(**options).fit(y, covariates)
    parts = TensorResponseRegressor(**options).fit(
        da.from_array(y, chunks=(-1, 15, -1)), covariates
    )
    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=2e-3 * np.abs(whole.coef_).max())
    assert parts.log_likelihood_ == pytest.approx(whole.log_likelihood_, rel=1e-6)
    assert parts.bic_ == pytest.approx(whole.bic_, rel=1e-6)
    np.testing.assert_allclose(parts.predict(covariates), parts.predict())


def test_separation_is_found_in_chunks_too():
    nations = load_nations()
    y = da.from_array(nations.tensor, chunks=(-1, -1, 20))
    model = TensorResponseRegressor(rank=4, family="binomial")
    with pytest.warns(SeparationWarning, match=r"of mode \d, rows \d+"):
        model.fit(y, [nations.covariates, nations.covariates, None])
    eta = model.predict(kind="link")
    assert np.abs(eta).max() <= 30
    seen = ~np.isnan(nations.tensor)
    expected = entry_log_likelihood("binomial", nations.tensor[seen], eta[seen]).sum()
    assert model.log_likelihood_ == pytest.approx(expected, rel=1e-9)


def test_what_chunks_cannot_do_is_said():
    y, covariates = planted()
    model = TensorResponseRegressor(rank=2, family="binomial")
    with pytest.raises(ParameterError, match=r"cut into chunks along one mode.*along \[0\]"):
        model.fit(da.from_array(y, chunks=(4, -1, -1)), covariates)
    array = da.from_array(y, chunks=(-1, 15, -1))
    with pytest.raises(ParameterError, match="no weights, offset or mask"):
        model.fit(array, covariates, weights=np.ones(y.shape))
    with pytest.raises(ParameterError, match="needs a tensor of 0 and 1"):
        model.fit(array + 1, covariates)
    with pytest.raises(InformationError, match="standard errors need the response in memory"):
        model.fit(array, covariates).standard_errors()
