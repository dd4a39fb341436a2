import numpy as np
import pytest
from scipy import special, stats

from regress.oracles import draw
from tesseral._errors import InformationError, ParameterError
from tesseral.core import multi_mode_product
from tesseral.datasets import make_tensor_response
from tesseral.regress import TensorResponseRegressor
from tesseral.regress._inference import adjusted

FAMILIES = ["normal", "binomial", "poisson", "negative_binomial", "gamma"]


def planted(family="normal", seed=0, signal=2.0):
    truth = make_tensor_response((16, 15, 14), 2, (4, None, 3), signal=signal, random_state=seed)
    return draw(family, truth.linear_predictor, np.random.default_rng(seed), 0.3), truth


def fitted(family="normal", seed=0, **options):
    y, truth = planted(family, seed)
    model = TensorResponseRegressor(rank=2, family=family, **options)
    return model.fit(y, list(truth.covariates)), truth


@pytest.mark.parametrize("family", FAMILIES)
def test_intervals_of_means_and_coefficients_hold_the_truth_as_often_as_they_say(family):
    truth = make_tensor_response((16, 15, 14), 2, (4, None, 3), signal=3.0, random_state=0)
    inside = []
    for seed in range(20):
        y = draw(family, truth.linear_predictor, np.random.default_rng(seed), 0.3)
        model = TensorResponseRegressor(rank=2, family=family)
        model.fit(y, list(truth.covariates))
        expected = model._setup.problem.family.mean(np, truth.linear_predictor)
        found = model.mean_interval()
        coef = model.coef_interval()
        inside.append(
            [
                ((found.low <= expected) & (expected <= found.high)).mean(),
                ((coef.low <= truth.coef) & (truth.coef <= coef.high)).mean(),
            ]
        )
    # 20 draws of some hundred parameters: a few per cent of Monte Carlo error
    means, coefs = np.mean(inside, axis=0)
    assert 0.92 <= means <= 0.97
    assert 0.91 <= coefs <= 0.98


def test_the_errors_of_an_unrestricted_regression_are_the_textbook_ones():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 3))
    y = x @ np.array([[1.0], [0.5], [0.0]]) + rng.standard_normal((200, 1))
    model = TensorResponseRegressor(rank=1).fit(y, [x, None])
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    scale = (residual**2).sum() / (200 - 3)
    expected = np.sqrt(scale * np.diag(np.linalg.inv(x.T @ x)))
    np.testing.assert_allclose(model.standard_errors()[:, 0], expected, rtol=1e-6)
    tests = model.wald_tests(0, correction="none")
    np.testing.assert_allclose(tests.statistic, (model.coef_[:, 0] / expected) ** 2, rtol=1e-6)
    assert tests.df == 1
    assert tests.names == ("x0", "x1", "x2")


def test_the_bootstrap_agrees_with_the_information():
    model, _ = fitted("poisson")
    errors = model.standard_errors()
    for kind in ("parametric", "entries"):
        drawn = model.bootstrap(60, kind=kind, random_state=0)
        assert drawn.coef.shape == (60, *model.coef_.shape)
        ratio = np.median(drawn.standard_errors() / errors)
        assert 0.8 < ratio < 1.25, kind
    wide = model.mean_interval(bootstrap=drawn, level=0.9)
    narrow = model.mean_interval(bootstrap=drawn, level=0.5)
    assert (wide.low <= narrow.low).all()
    assert (narrow.high <= wide.high).all()
    assert (model.coef_interval(bootstrap=drawn).low <= model.coef_).mean() > 0.95


def test_the_bootstrap_is_reproducible_and_respects_holes_and_ties():
    truth = make_tensor_response(
        (10, 10, 8),
        2,
        (None, None, 3),
        symmetric=[(0, 1)],
        symmetric_noise=True,
        family="binomial",
        random_state=0,
    )
    y = truth.tensor.astype(float)
    y[1, 2] = y[2, 1] = np.nan
    model = TensorResponseRegressor(rank=2, family="binomial", symmetric=[(0, 1)])
    model.fit(y, list(truth.covariates))
    for kind in ("parametric", "entries"):
        first = model.bootstrap(3, kind=kind, random_state=0).coef
        np.testing.assert_array_equal(first, model.bootstrap(3, kind=kind, random_state=0).coef)
        np.testing.assert_allclose(first, first.swapaxes(1, 2), atol=1e-8)


def test_covariates_without_effect_are_found_as_often_as_the_level_says():
    core = np.zeros((2, 2, 2))
    core[0, 0, 0], core[1, 1, 1], core[0, 1, 1] = 1.0, 0.8, 0.3
    p_values = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((30, 4)) / 30**0.5
        other = rng.standard_normal((28, 3)) / 28**0.5
        factors = [
            np.linalg.qr(np.concatenate([rng.standard_normal((2, 2)), np.zeros((2, 2))]))[0],
            np.linalg.qr(rng.standard_normal((3, 2)))[0],
            np.linalg.qr(rng.standard_normal((24, 2)))[0],
        ]
        theta = multi_mode_product(multi_mode_product(core, factors), [x, other, None])
        theta *= 5 / np.abs(theta).max()
        y = (rng.random(theta.shape) < special.expit(theta)) * 1.0
        model = TensorResponseRegressor(rank=2, family="binomial").fit(y, [x, other, None])
        p_values.append(model.wald_tests(0, correction="none").p_value)
    p_values = np.array(p_values)
    assert stats.kstest(p_values[:, 2:].ravel(), "uniform").pvalue > 0.01
    assert (p_values[:, :2] < 0.05).mean() > 0.9


def test_every_coefficient_is_tested_and_ties_are_tested_once():
    truth = make_tensor_response(
        (9, 9, 12), 2, (None, None, 3), symmetric=[(0, 1)], symmetric_noise=True, random_state=0
    )
    model = TensorResponseRegressor(rank=2, symmetric=[(0, 1)])
    model.fit(truth.tensor, list(truth.covariates))
    found = model.coef_tests(correction="bonferroni")
    assert found.adjusted.shape == model.coef_.shape
    np.testing.assert_allclose(found.adjusted, np.minimum(found.p_value * 45 * 3, 1))
    np.testing.assert_allclose(found.adjusted, found.adjusted.swapaxes(0, 1))


@pytest.mark.parametrize("correction", ["holm", "bonferroni", "fdr", "none"])
def test_corrections_are_those_of_the_books(correction):
    p = np.array([[0.01, 0.04], [0.03, 0.005]])
    expected = {
        "holm": [[0.03, 0.06], [0.06, 0.02]],
        "bonferroni": [[0.04, 0.16], [0.12, 0.02]],
        "fdr": [[0.02, 0.04], [0.04, 0.02]],
        "none": p,
    }[correction]
    np.testing.assert_allclose(adjusted(p, correction), expected)


def test_new_rows_have_intervals_that_widen_with_distance():
    model, truth = fitted("binomial")
    near = truth.covariates[0][:1]
    widths = []
    for row in (near, 5 * near):
        eta = model.predict([row, None, None], kind="link")
        found = model.mean_interval([row, None, None])
        assert (special.expit(eta) >= found.low).all()
        widths.append((special.logit(found.high) - special.logit(found.low)).mean())
    assert widths[1] == pytest.approx(5 * widths[0], rel=1e-6)


def test_expected_information_can_be_asked_for():
    model, _ = fitted("negative_binomial")
    ratio = model.standard_errors() / model.standard_errors(information="expected")
    assert 0.5 < np.median(ratio) < 2
    assert not np.array_equal(ratio, np.ones_like(ratio))


def test_a_fit_far_from_its_maximum_has_no_observed_information():
    y, truth = planted("normal")
    model = TensorResponseRegressor(rank=2, start=50 * truth.coef, constraint="rescale")
    with pytest.warns(UserWarning, match="stopped after 1"):
        model.set_params(max_iter=1, max_theta=0.01).fit(10 * y, list(truth.covariates))
    with pytest.raises(InformationError, match="Use the bootstrap"):
        model.standard_errors()


def test_bad_questions_get_one_clear_message():
    model, _ = fitted()
    with pytest.raises(ParameterError, match="level must be a number between 0 and 1; got 95"):
        model.coef_interval(95)
    with pytest.raises(ParameterError, match="mode must be an integer from 0 to 2, or 'mode 0'"):
        model.wald_tests(3)
    with pytest.raises(ParameterError, match="correction must be 'holm'"):
        model.wald_tests(0, correction="tukey")
    with pytest.raises(ParameterError, match="information must be 'observed'"):
        model.standard_errors(information="fisher")
    with pytest.raises(ParameterError, match="kind must be 'parametric'"):
        model.bootstrap(kind="rows")
