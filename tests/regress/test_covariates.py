import numpy as np
import pandas as pd
import pytest
import xarray

from tesseral._errors import DtypeError, MissingExtraError, ParameterError, ShapeError
from tesseral.datasets import make_tensor_response
from tesseral.regress import TensorResponseRegressor
from tesseral.regress._covariates import parse_covariates
from tesseral.regress._summary import _table

GROUPS = ["a", "b", "c"] * 8


def planted():
    truth = make_tensor_response((24, 10, 12), 2, (4, None, 3), random_state=0)
    return truth.tensor, list(truth.covariates)


def people(seed=0, n=24):
    rng = np.random.default_rng(seed)
    index = [f"p{i}" for i in range(n)]
    return pd.DataFrame({"age": rng.normal(40, 10, n), "group": GROUPS[:n]}, index=index)


def test_a_data_frame_is_its_matrix_with_names():
    y, covariates = planted()
    frame = pd.DataFrame(covariates[0], columns=["u", "v", "w", "z"], index=people().index)
    named = TensorResponseRegressor(rank=2).fit(y, [frame, None, covariates[2]])
    plain = TensorResponseRegressor(rank=2).fit(y, covariates)
    np.testing.assert_array_equal(named.coef_, plain.coef_)
    assert named.covariate_names_[0] == ("u", "v", "w", "z")
    shuffled = frame[["z", "u", "w", "v"]].assign(more=1.0)
    np.testing.assert_allclose(named.predict([shuffled, None, None]), plain.predict(), atol=1e-12)
    with pytest.raises(ParameterError, match="the data frame for mode 0 lacks the covariate 'u'"):
        named.predict([frame.drop(columns="u"), None, None])


def test_a_formula_makes_the_same_columns_of_new_data():
    y, covariates = planted()
    frame = people()
    model = TensorResponseRegressor(rank=2)
    model.fit(y, [("~ center(age) + group", frame), None, covariates[2]])
    assert model.covariate_names_[0] == ("Intercept", "center(age)", "group[T.b]", "group[T.c]")
    # one row of a group: the others' columns and the centre of the fit must be remembered
    alone = model.predict([frame.iloc[4:5], None, None])
    np.testing.assert_allclose(alone, model.predict()[4:5], atol=1e-10)


def test_columns_go_by_name_though_they_are_called_as_unnamed_ones():
    y, covariates = planted()
    frame = pd.DataFrame(covariates[0], columns=["x0", "x1", "x2", "x3"])
    model = TensorResponseRegressor(rank=2).fit(y, [frame, None, covariates[2]])
    found = model.predict([frame[["x2", "x0", "x3", "x1"]], None, None])
    np.testing.assert_allclose(found, model.predict(), atol=1e-12)
    with pytest.raises(ParameterError, match="lacks the covariate 'x1'"):
        model.predict([frame.rename(columns={"x1": "zzz"}), None, None])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (people().assign(group="elsewhere"), "mode 0 cannot be evaluated: .*elsewhere"),
        (people().drop(columns="age"), "mode 0 cannot be evaluated: .*columns are group"),
        (people().assign(age=np.nan), "mode 0 cannot be evaluated"),
        (("~ age", people()), r"fitted with '~ center\(age\) \+ group', not with '~ age'"),
    ],
)
def test_new_rows_that_a_formula_cannot_use_are_refused(item, words):
    y, covariates = planted()
    text = "~ center(age) + group"
    model = TensorResponseRegressor(rank=2).fit(y, [(text, people()), None, covariates[2]])
    with pytest.raises(ParameterError, match=words):
        model.predict([item, None, None])
    same = model.predict([(text, people()), None, None])
    np.testing.assert_allclose(same, model.predict(), atol=1e-10)


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (("~ nothing", people()), ParameterError, "the formula '~ nothing' for mode 0 cannot be"),
        (people(), DtypeError, "must be numbers; give a formula for columns that are not"),
        (("~ age", people(n=12)), ShapeError, r"needs a covariate matrix of shape \(24, p\)"),
        (("~ age", people().assign(age=np.nan)), ParameterError, "for mode 0 cannot be evaluated"),
    ],
)
def test_what_a_formula_cannot_use_is_said(item, error, words):
    y, _ = planted()
    with pytest.raises(error, match=words):
        TensorResponseRegressor(rank=2).fit(y, [item, None, None])


def test_a_missing_formula_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "formulaic", None)
    with pytest.raises(MissingExtraError, match=r"needs formulaic.*tesseral\[formula\]"):
        parse_covariates("here", [("~ age", people()), None, None], (24, 10, 12))


def test_an_xarray_response_brings_names_of_modes_and_rows():
    y, covariates = planted()
    names = people().index
    response = xarray.DataArray(y, dims=["person", "region", "time"], coords={"person": names})
    model = TensorResponseRegressor(rank=2).fit(
        response, {"person": covariates[0], "time": covariates[2]}
    )
    plain = TensorResponseRegressor(rank=2).fit(y, covariates)
    np.testing.assert_array_equal(model.coef_, plain.coef_)
    assert model.dims_ == ("person", "region", "time")
    assert model.wald_tests("person").names == ("x0", "x1", "x2", "x3")
    np.testing.assert_array_equal(model.predict({"person": covariates[0]}), plain.predict())
    with pytest.raises(ParameterError, match="covariates name 'country', which is no mode"):
        model.predict({"country": covariates[0]})


def test_rows_of_a_mode_without_covariates_lend_their_names():
    y, covariates = planted()
    regions = [f"r{i}" for i in range(10)]
    response = xarray.DataArray(y, dims=["a", "b", "c"], coords={"b": regions})
    model = TensorResponseRegressor(rank=2).fit(response, [covariates[0], None, covariates[2]])
    assert model.covariate_names_[1] == tuple(regions)


def test_one_column_may_be_a_vector():
    y, covariates = planted()
    model = TensorResponseRegressor(rank=1).fit(y, [covariates[0][:, 0], None, None])
    assert model.coef_.shape == (1, 10, 12)


def test_the_summary_reads_like_a_regression_table():
    y, _ = planted()
    model = TensorResponseRegressor(rank=2).fit(y, [("~ age + group", people()), None, None])
    summary = model.summary(n_coefficients=3)
    text = str(summary)
    for words in ("24 x 10 x 12", "Log-likelihood:", "group[T.b]", "P>chi2", "std err", "[0.025"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 78
    tests = model.wald_tests(0)
    assert [record["adjusted"] for record in summary.effects["mode 0"]] == list(tests.adjusted)
    assert len(summary.coefficients) == 3
    z = [abs(record["z"]) for record in summary.coefficients]
    assert z == sorted(z, reverse=True)


def test_numbers_of_a_summary_never_run_together():
    record = {"covariate": "dose", "coef": -0.00012345, "P>|z|": 2.553e-271, "adjusted": 0.0}
    line = _table([record], list(record))[-1]
    assert line.split() == ["dose", "-0.000123", "<1e-99", "<1e-99"]
    record = {"covariate": "dose", "coef": -1.2345e-05, "P>|z|": 2.5534e-45, "adjusted": 0.5}
    assert _table([record], list(record))[-1].split()[1:] == ["-1.23e-05", "2.553e-45", "0.5"]


def test_a_summary_without_standard_errors_says_why():
    y, covariates = planted()
    model = TensorResponseRegressor(rank=2, constraint="rescale", max_theta=0.01, max_iter=1)
    with pytest.warns(UserWarning, match="stopped after 1"):
        model.fit(10 * y, covariates)
    summary = model.summary()
    assert summary.effects == {}
    assert "Note: the information about the coefficients is not positive" in str(summary)
