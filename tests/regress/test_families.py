import numpy as np
import pytest

from regress.oracles import draw, entry_log_likelihood
from tesseral._errors import ParameterError
from tesseral.regress._families import count_table, family_named

NAMES = ["normal", "binomial", "poisson", "negative_binomial", "gamma"]
every_family = pytest.mark.parametrize("name", NAMES)


def data(name, seed=0, shape=(40, 30)):
    rng = np.random.default_rng(seed)
    eta = rng.normal(0.3, 0.8, shape)
    return draw(name, eta, rng), eta


def terms(name, y, eta, dispersion=0.5):
    return family_named(name).terms(np, y, eta, dispersion)


@every_family
@pytest.mark.parametrize("weighted", [False, True])
def test_the_log_likelihood_has_all_its_constants(name, weighted):
    y, eta = data(name)
    family = family_named(name)
    weights = np.random.default_rng(1).uniform(0.1, 2, y.shape) if weighted else None
    seen = family.observations(y, weights)
    factor = 1.0 if weights is None else weights
    kernels = float((terms(name, y, eta).kernel * factor).sum())
    profiled = name in ("normal", "gamma")
    dispersion = family.profile_dispersion(kernels, seen) if profiled else 0.5
    expected = (entry_log_likelihood(name, y, eta, dispersion) * factor).sum()
    assert family.total(kernels, seen, 0.5) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["normal", "gamma"])
def test_the_dispersion_is_the_likeliest(name):
    y, eta = data(name)
    family = family_named(name)
    found = family.profile_dispersion(
        float(terms(name, y, eta).kernel.sum()), family.observations(y, None)
    )
    best, *others = (
        entry_log_likelihood(name, y, eta, found * factor).sum() for factor in (1, 0.99, 1.01)
    )
    assert best > max(others)


@every_family
def test_scores_and_curvatures_are_derivatives(name):
    y, eta = data(name)
    step = 1e-5
    found = terms(name, y, eta)
    after, before = terms(name, y, eta + step), terms(name, y, eta - step)
    np.testing.assert_allclose(
        found.score, (after.kernel - before.kernel) / (2 * step), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(
        family_named(name).curvature(np, y, eta, 0.5),
        -(after.score - before.score) / (2 * step),
        rtol=1e-6,
        atol=1e-6,
    )


@every_family
def test_the_weight_is_the_expected_curvature(name):
    rng = np.random.default_rng(0)
    eta = np.full(200_000, 0.4)
    y = draw(name, eta, rng)
    found = terms(name, y, eta)
    weight = 1.0 if found.weight is None else found.weight.mean()
    spread = family_named(name).curvature(np, y, eta, 0.5)
    assert weight == pytest.approx(spread.mean(), abs=5 * spread.std() / len(eta) ** 0.5 + 1e-12)


@every_family
def test_link_and_mean_are_inverse_and_the_variance_fits_the_draws(name):
    family = family_named(name)
    eta = np.linspace(-2, 2, 9)
    mean = family.mean(np, eta)
    np.testing.assert_allclose(family.link_of(np, mean), eta, atol=1e-12)
    rng = np.random.default_rng(0)
    drawn = family.draw(np.full(100_000, 0.6), 0.5, rng)
    assert drawn.mean() == pytest.approx(0.6, abs=0.02)
    expected = family.variance(np, np.array(0.6), 0.5)
    assert drawn.var() == pytest.approx(float(expected), rel=0.03)


def test_extreme_linear_predictors_do_not_overflow():
    eta = np.array([-800.0, 0.0, 800.0])
    found = terms("binomial", np.array([0.0, 1.0, 1.0]), eta)
    np.testing.assert_allclose(found.kernel, [0.0, -np.log(2), 0.0])
    np.testing.assert_allclose(found.score, [0.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("binomial", 0.5, r"needs a tensor of 0 and 1; entry \(1, 0\) is 0.5"),
        ("poisson", -1.0, r"needs counts \(0, 1, 2, ...\); entry \(1, 0\) is -1"),
        ("negative_binomial", 1.5, r"needs counts .*; entry \(1, 0\) is 1.5"),
        ("gamma", -2.0, r"needs positive values; entry \(1, 0\) is -2"),
    ],
)
def test_impossible_values_are_named(name, value, words):
    values = np.ones((2, 2))
    values[1, 0] = value
    with pytest.raises(ParameterError, match=f"^here: family '{name}' {words}"):
        family_named(name).check(values, "here")


@pytest.mark.parametrize("largest", [3.0, 1e6])
def test_counts_are_tabled_with_their_weights(largest):
    values, weights = count_table(np.array([0, largest, 0, 2]), np.array([1.0, 2.0, 0.5, 4.0]))
    np.testing.assert_array_equal(values, [0, 2, largest])
    np.testing.assert_array_equal(weights, [1.5, 4.0, 2.0])
