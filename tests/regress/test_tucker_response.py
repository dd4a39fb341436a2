import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from regress.oracles import draw, entry_log_likelihood, linear_predictor
from support.frameworks import every_framework, to_numpy
from tesseral._errors import (
    CollinearityWarning,
    ConvergenceWarning,
    DtypeError,
    MissingSliceWarning,
    ParameterError,
    SeparationWarning,
    ShapeError,
)
from tesseral.core import multi_mode_product, orthonormality_error, unfold
from tesseral.datasets import load_nations, make_tensor_response
from tesseral.regress import TensorResponseRegressor

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
FAMILIES = ["normal", "binomial", "poisson", "negative_binomial", "gamma"]


def planted(family="normal", *, seed=0, missing=0.0, scale=1.5):
    """Return a response with a planted coefficient tensor, and both."""
    rng = np.random.default_rng(seed)
    truth = make_tensor_response((24, 22, 20), 2, (4, None, 3), signal=scale, random_state=seed)
    y = draw(family, truth.linear_predictor, rng, dispersion=0.3)
    y[rng.random(y.shape) < missing] = np.nan
    return y, list(truth.covariates), truth


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_fits_are_at_least_as_good_as_those_of_the_r_package(path):
    stored = np.load(path)
    covariates = [stored.get(f"X{mode}") for mode in (1, 2, 3)]
    name = str(stored["dist"])
    model = TensorResponseRegressor(
        rank=[int(r) for r in stored["rank"]],
        family="binomial" if name == "binary" else name,
    ).fit(stored["Y"], covariates)
    assert model.log_likelihood_ >= float(stored["loglik"]) - 0.01
    distance = np.linalg.norm(model.coef_ - stored["coef"])
    assert distance <= 0.01 * np.linalg.norm(stored["coef"])
    assert (np.diff(model.history_) >= -1e-9 * abs(model.log_likelihood_)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_coefficients_are_found_with_entries_missing(family):
    y, covariates, truth = planted(family)
    holes = np.where(np.random.default_rng(1).random(y.shape) < 0.3, np.nan, y)

    def squared_error(response):
        model = TensorResponseRegressor(rank=2, family=family).fit(response, covariates)
        assert model.converged_
        assert (np.diff(model.history_) >= -1e-9 * abs(model.log_likelihood_)).all()
        return ((model.coef_ - truth.coef) ** 2).sum()

    complete = squared_error(y)
    assert complete < 0.5 * (truth.coef**2).sum()
    # one draw of the holes scatters around 1 / 0.7
    assert squared_error(holes) < 2.5 * complete


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((30, 25), (5, None)),
        ((12, 10, 8), (3, None, 4)),
        ((8, 7, 6, 5), (3, None, None, 3)),
        ((6, 5, 4, 5, 4), (3, None, 3, None, None)),
    ],
    ids=["order2", "order3", "order4", "order5"],
)
@pytest.mark.parametrize("family", ["normal", "poisson"])
def test_tensors_of_any_order_are_fitted(shape, widths, family):
    truth = make_tensor_response(shape, 2, widths, family=family, signal=2.0, random_state=0)
    model = TensorResponseRegressor(rank=2, family=family).fit(truth.tensor, truth.covariates)
    assert model.coef_.shape == truth.coef.shape
    eta = linear_predictor(model.coef_, truth.covariates)
    np.testing.assert_allclose(model.predict(kind="link"), eta, atol=1e-10)
    at_truth = entry_log_likelihood(family, truth.tensor, truth.linear_predictor, 1.0).sum()
    assert model.log_likelihood_ > at_truth


@pytest.mark.parametrize("family", FAMILIES)
def test_the_log_likelihood_is_that_of_the_fit(family):
    y, covariates, _ = planted(family)
    model = TensorResponseRegressor(rank=2, family=family).fit(y, covariates)
    eta = model.predict(kind="link")
    expected = entry_log_likelihood(family, y, eta, model.dispersion_).sum()
    assert model.log_likelihood_ == pytest.approx(expected, rel=1e-9)
    assert model.dof_ == (4 - 2) * 2 + (22 - 2) * 2 + (3 - 2) * 2 + 8
    assert model.bic_ == pytest.approx(-2 * expected + model.dof_ * np.log(y.size))


@pytest.mark.parametrize("family", ["normal", "binomial"])
def test_a_small_step_of_any_kind_makes_the_fit_worse(family):
    y, covariates, _ = planted(family)
    model = TensorResponseRegressor(rank=2, family=family, tol=1e-12).fit(y, covariates)
    rng = np.random.default_rng(0)

    def loss(core, factors):
        eta = linear_predictor(multi_mode_product(core, factors), covariates)
        return entry_log_likelihood(family, y, eta, model.dispersion_).sum()

    best = loss(model.core_, model.factors_)
    for _ in range(10):
        core = model.core_ + 1e-3 * rng.standard_normal(model.core_.shape)
        factors = [f + 1e-3 * rng.standard_normal(f.shape) for f in model.factors_]
        assert loss(core, factors) < best


@every_framework
@pytest.mark.parametrize("family", ["normal", "binomial", "negative_binomial"])
def test_every_framework_gives_the_same_fit(make, family):
    y, covariates, _ = planted(family, missing=0.1)
    expected = TensorResponseRegressor(rank=2, family=family).fit(y, covariates)
    found = TensorResponseRegressor(rank=2, family=family).fit(make(y), covariates)
    assert type(found.coef_) is type(make(y))
    np.testing.assert_allclose(to_numpy(found.coef_), expected.coef_, atol=1e-6)
    np.testing.assert_allclose(to_numpy(found.predict()), expected.predict(), atol=1e-6)


@every_framework
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("binomial", {"constraint": "barrier"}),
        ("poisson", {"ridge": 0.5}),
        ("gamma", {"constraint": "rescale"}),
    ],
)
def test_every_path_leads_to_the_same_in_every_framework(make, family, more):
    y, covariates, _ = planted(family, missing=0.1)
    given = {
        "weights": np.random.default_rng(0).uniform(0.5, 2, y.shape),
        "offset": np.linspace(0, 0.5, y.shape[0])[:, None, None],
    }
    options = {"rank": "bic", "candidates": [(2, 2, 2), (3, 3, 3)], **more}
    ours, model = (TensorResponseRegressor(family=family, **options) for _ in range(2))
    ours.fit(y, covariates, **given)
    model.fit(make(y), covariates, **{name: make(value) for name, value in given.items()})
    assert model.rank_ == ours.rank_
    np.testing.assert_allclose(to_numpy(model.coef_), ours.coef_, atol=1e-5)
    np.testing.assert_allclose(model.standard_errors(), ours.standard_errors(), rtol=1e-4)
    rows = [covariates[0][:3], None, None]
    np.testing.assert_allclose(to_numpy(model.predict(rows)), ours.predict(rows), atol=1e-5)
    shift = given["offset"][:3]
    np.testing.assert_allclose(
        to_numpy(model.predict(rows, offset=shift)), ours.predict(rows, offset=shift), atol=1e-5
    )
    found, expected = (m.wald_tests(0).p_value for m in (model, ours))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@every_framework
def test_ties_lead_to_the_same_in_every_framework(make):
    y, covariates, _ = network("binomial")
    options = {"rank": 2, "family": "binomial", "symmetric": [(0, 1)]}
    ours = TensorResponseRegressor(**options).fit(y, covariates)
    model = TensorResponseRegressor(**options).fit(make(y), covariates)
    np.testing.assert_allclose(to_numpy(model.coef_), ours.coef_, atol=1e-5)
    found, expected = (m.mean_interval() for m in (model, ours))
    np.testing.assert_allclose(found.low, expected.low, atol=1e-5)
    drawn = model.bootstrap(2, random_state=0)
    assert np.isfinite(drawn.coef).all()


def test_single_precision_is_kept_and_close():
    y, covariates, _ = planted("binomial")
    wide = TensorResponseRegressor(rank=2, family="binomial").fit(y, covariates)
    narrow = TensorResponseRegressor(rank=2, family="binomial", tol=1e-6).fit(
        torch.from_numpy(y.astype(np.float32)), covariates
    )
    assert narrow.coef_.dtype == torch.float32
    np.testing.assert_allclose(narrow.coef_.numpy(), wide.coef_, atol=0.02)


def test_the_factors_are_orthonormal_and_the_core_says_which_comes_first():
    y, covariates, _ = planted()
    model = TensorResponseRegressor(rank=2).fit(y, covariates)
    np.testing.assert_allclose(multi_mode_product(model.core_, model.factors_), model.coef_)
    for mode, factor in enumerate(model.factors_):
        assert orthonormality_error(factor) < 1e-10
        rows = unfold(model.core_, mode)
        gram = rows @ rows.T
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9 * gram.max())
        assert (np.diff(np.diag(gram)) <= 0).all()


def test_nan_and_mask_mean_the_same_and_hide_their_values():
    y, covariates, _ = planted("binomial", missing=0.2)
    hidden = np.where(np.isnan(y), 1.0, y)
    first = TensorResponseRegressor(rank=2, family="binomial").fit(y, covariates)
    second = TensorResponseRegressor(rank=2, family="binomial").fit(
        hidden, covariates, mask=~np.isnan(y)
    )
    np.testing.assert_array_equal(first.coef_, second.coef_)
    assert first.n_entries_ == (~np.isnan(y)).sum()


def test_a_weight_of_two_is_an_entry_seen_twice():
    y, covariates, _ = planted("poisson")
    weights = np.ones(y.shape)
    weights[:10] = 2.0
    twice = np.concatenate([y, y[:10]])
    rows = np.concatenate([covariates[0], covariates[0][:10]])
    found = TensorResponseRegressor(rank=2, family="poisson", tol=1e-12).fit(
        y, covariates, weights=weights
    )
    expected = TensorResponseRegressor(rank=2, family="poisson", tol=1e-12).fit(
        twice, [rows, *covariates[1:]]
    )
    np.testing.assert_allclose(found.coef_, expected.coef_, atol=1e-4)
    assert found.log_likelihood_ == pytest.approx(expected.log_likelihood_, rel=1e-9)


def test_an_offset_is_known_exposure():
    _, covariates, truth = planted("poisson")
    exposure = np.random.default_rng(0).uniform(0.5, 20, (24, 1, 1))
    y = np.random.default_rng(1).poisson(exposure * np.exp(truth.linear_predictor))
    model = TensorResponseRegressor(rank=2, family="poisson").fit(
        y, covariates, offset=np.log(exposure)
    )
    error = np.linalg.norm(model.coef_ - truth.coef) / np.linalg.norm(truth.coef)
    assert error < 0.3
    np.testing.assert_allclose(model.predict(), exposure * model.predict(covariates), rtol=1e-10)
    np.testing.assert_allclose(
        model.predict(covariates, offset=np.log(exposure)), model.predict(), rtol=1e-10
    )


def test_the_excess_of_a_negative_binomial_is_estimated():
    y, covariates, _ = planted("negative_binomial")
    model = TensorResponseRegressor(rank=2, family="negative_binomial").fit(y, covariates)
    assert model.dispersion_ == pytest.approx(0.3, abs=0.05)
    fixed = TensorResponseRegressor(rank=2, family="negative_binomial", dispersion=0.2).fit(
        y, covariates
    )
    assert fixed.dispersion_ == 0.2
    assert fixed.log_likelihood_ < model.log_likelihood_


def network(family="binomial", seed=0, symmetric=True):
    truth = make_tensor_response(
        (18, 18, 15),
        (2, 2, 2),
        (None, None, 3),
        symmetric=[(0, 1)],
        symmetric_noise=symmetric,
        family=family,
        signal=3.0,
        random_state=seed,
    )
    return truth.tensor.astype(float), list(truth.covariates), truth


def test_tied_modes_share_factors_and_entries_count_once():
    y, covariates, _ = network()
    model = TensorResponseRegressor(rank=2, family="binomial", symmetric=[(0, 1)]).fit(
        y, covariates
    )
    np.testing.assert_array_equal(model.factors_[0], model.factors_[1])
    np.testing.assert_allclose(model.coef_, model.coef_.swapaxes(0, 1), atol=1e-10)
    assert model.n_entries_ == pytest.approx(18 * 19 / 2 * 15)
    upper = np.triu_indices(18)
    eta = model.predict(kind="link")
    expected = entry_log_likelihood("binomial", y[upper], eta[upper]).sum()
    assert model.log_likelihood_ == pytest.approx(expected, rel=1e-10)
    assert model.dof_ == (18 - 2) * 2 + (3 - 2) * 2 + 3 * 2


def test_tied_modes_of_a_directed_network_keep_every_entry():
    y, covariates, _ = network(symmetric=False)
    model = TensorResponseRegressor(rank=2, family="binomial", symmetric=[(0, 1)]).fit(
        y, covariates
    )
    assert model.n_entries_ == y.size
    assert (np.diff(model.history_) >= 0).all()


def test_one_side_of_a_symmetric_network_says_as_much_as_both():
    y, covariates, _ = network()
    half = y.copy()
    half[np.tril_indices(18, -1)] = np.nan
    options = {"rank": 2, "family": "binomial", "symmetric": [(0, 1)], "tol": 1e-12}
    both = TensorResponseRegressor(**options).fit(y, covariates)
    one = TensorResponseRegressor(**options).fit(half, covariates)
    assert one.n_entries_ == pytest.approx(both.n_entries_)
    assert one.log_likelihood_ == pytest.approx(both.log_likelihood_, abs=1e-2)


@pytest.mark.parametrize("family", ["normal", "poisson"])
def test_a_directed_network_under_ties_is_at_the_top_of_its_likelihood(family):
    y, covariates, _ = network(family, symmetric=False)
    y[2, 5] = np.nan
    model = TensorResponseRegressor(rank=2, family=family, symmetric=[(0, 1)], tol=1e-13)
    model.fit(y, covariates)
    rng = np.random.default_rng(0)
    seen = ~np.isnan(y)

    def at(core, shared, third):
        eta = linear_predictor(multi_mode_product(core, [shared, shared, third]), covariates)
        return entry_log_likelihood(family, y[seen], eta[seen], model.dispersion_).sum()

    shared, third = model.factors_[1:]
    assert model.log_likelihood_ == pytest.approx(at(model.core_, shared, third), rel=1e-10)
    for _ in range(10):
        core = model.core_ + 1e-3 * rng.standard_normal(model.core_.shape)
        core = (core + core.swapaxes(0, 1)) / 2
        step = 1e-3 * rng.standard_normal(shared.shape)
        assert at(core, shared + step, third) < model.log_likelihood_


def test_ties_need_an_offset_as_symmetric_as_their_means():
    y, covariates, _ = network("poisson")
    model = TensorResponseRegressor(rank=2, family="poisson", symmetric=[(0, 1)])
    with pytest.raises(ParameterError, match="tied modes need an offset that is symmetric"):
        model.fit(y, covariates, offset=np.arange(18.0)[:, None, None])


def test_new_rows_are_predicted_from_their_covariates():
    y, covariates, _ = planted()
    model = TensorResponseRegressor(rank=2).fit(y, covariates)
    rows = np.random.default_rng(0).standard_normal((5, 4))
    found = model.predict([rows, None, None])
    expected = linear_predictor(model.coef_, [rows, None, covariates[2]])
    np.testing.assert_allclose(found, expected, atol=1e-10)
    np.testing.assert_array_equal(model.predict({0: rows}), found)


@pytest.mark.parametrize("shape", [(7,), (1, 1, 1, 24)])
def test_an_offset_that_does_not_fit_new_rows_is_refused(shape):
    y, covariates, _ = planted()
    model = TensorResponseRegressor(rank=2).fit(y, covariates)
    with pytest.raises(ShapeError, match="predict: offset of shape"):
        model.predict(offset=np.zeros(shape))


def test_a_search_is_forgotten_by_the_next_fit():
    y, covariates, _ = planted()
    model = TensorResponseRegressor(rank="bic", candidates=2).fit(y, covariates)
    assert model.selection_.best is not None
    assert not hasattr(model.set_params(rank=1).fit(y, covariates), "selection_")


def test_several_starts_keep_the_likeliest_and_are_reproducible():
    y, covariates, _ = planted("binomial")
    options = {"rank": 2, "family": "binomial", "start": "random", "random_state": 0}
    one = TensorResponseRegressor(**options).fit(y, covariates)
    several = TensorResponseRegressor(n_init=4, **options).fit(y, covariates)
    again = TensorResponseRegressor(n_init=4, **options).fit(y, covariates)
    assert several.log_likelihood_ >= one.log_likelihood_
    np.testing.assert_array_equal(several.coef_, again.coef_)


def test_a_coefficient_tensor_is_a_start():
    y, covariates, truth = planted("binomial")
    model = TensorResponseRegressor(rank=2, family="binomial", start=truth.coef)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.set_params(max_iter=1).fit(y, covariates)
    at_truth = entry_log_likelihood("binomial", y, truth.linear_predictor).sum()
    assert model.history_[0] == pytest.approx(at_truth, rel=1e-9)
    with pytest.raises(ShapeError, match="start needs a coefficient tensor of shape"):
        model.set_params(start=np.ones((2, 2))).fit(y, covariates)


@pytest.mark.parametrize("constraint", ["rescale", "barrier"])
def test_linear_predictors_stay_within_their_bound(constraint):
    y, covariates, _ = planted("binomial", scale=6.0)
    free = TensorResponseRegressor(rank=2, family="binomial").fit(y, covariates)
    bound = 0.6 * np.abs(free.predict(kind="link")).max()
    model = TensorResponseRegressor(
        rank=2, family="binomial", constraint=constraint, max_theta=bound
    ).fit(y, covariates)
    assert np.abs(model.predict(kind="link")).max() <= bound * (1 + 1e-9)
    assert (np.diff(model.history_) >= 0).all()
    eta = model.predict(kind="link")
    expected = entry_log_likelihood("binomial", y, eta).sum()
    assert model.log_likelihood_ == pytest.approx(expected, rel=1e-9)


def test_a_ridge_shrinks_the_coefficients():
    y, covariates, _ = planted("binomial")
    norms = [
        np.linalg.norm(
            TensorResponseRegressor(rank=2, family="binomial", ridge=ridge).fit(y, covariates).coef_
        )
        for ridge in (0.0, 0.1, 1.0)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_a_ridge_fit_has_no_slope_left():
    y, covariates, _ = planted("binomial")
    model = TensorResponseRegressor(rank=(4, 12, 3), family="binomial", ridge=0.3, tol=1e-13)
    model.set_params(max_iter=500).fit(y, covariates)
    mean = model.predict()
    slope = multi_mode_product(y - mean, covariates, transpose=True) - 0.3 * model.coef_
    # along the fitted subspaces the penalised likelihood is flat
    inside = multi_mode_product(slope, model.factors_, transpose=True)
    assert (
        np.abs(inside).max()
        < 1e-3 * np.abs(multi_mode_product(y, covariates, transpose=True)).max()
    )


def test_separated_data_are_named_and_fitted_under_a_bound():
    nations = load_nations()
    y = np.nan_to_num(nations.tensor)
    x = nations.covariates
    model = TensorResponseRegressor(rank=4, family="binomial")
    with pytest.warns(SeparationWarning, match=r"of mode \d, rows .*max\|theta\| <= 30"):
        model.fit(y, [x, x, None])
    assert np.abs(model.predict(kind="link")).max() <= 30
    assert model.separation_.rows
    assert model.log_likelihood_ > -4578.5  # where the R package stops


def test_data_that_are_not_separated_are_not_bounded():
    y, covariates, _ = planted("binomial", scale=8.0)
    model = TensorResponseRegressor(rank=2, family="binomial").fit(y, covariates)
    assert model.separation_ is None


def test_collinear_covariates_give_the_smallest_coefficients_and_a_warning():
    y, covariates, _ = planted()
    doubled = np.concatenate([covariates[0], covariates[0][:, :1]], axis=1)
    plain = TensorResponseRegressor(rank=2).fit(y, covariates)
    with pytest.warns(CollinearityWarning, match="5 covariates of mode 0 span only 4.*'x0', 'x4'"):
        model = TensorResponseRegressor(rank=2).fit(y, [doubled, *covariates[1:]])
    np.testing.assert_allclose(model.predict(), plain.predict(), atol=1e-7)
    np.testing.assert_allclose(model.coef_[0], model.coef_[4], atol=1e-7)
    assert model.dof_ == plain.dof_


def test_permuting_modes_permutes_the_coefficients():
    y, covariates, _ = planted("binomial")
    axes = (2, 0, 1)
    options = {"rank": 2, "family": "binomial", "tol": 1e-13, "max_iter": 500}
    model = TensorResponseRegressor(**options).fit(y, covariates)
    turned = TensorResponseRegressor(**options).fit(
        y.transpose(axes), [covariates[axis] for axis in axes]
    )
    np.testing.assert_allclose(turned.coef_, model.coef_.transpose(axes), atol=1e-3)


def test_running_out_of_rounds_warns_once_from_fit():
    y, covariates, _ = planted("binomial")
    with pytest.warns(ConvergenceWarning, match="TensorResponseRegressor: stopped after 1") as all_:
        TensorResponseRegressor(rank=2, family="binomial", max_iter=1).fit(y, covariates)
    assert [warning.filename for warning in all_] == [__file__]


def test_the_estimator_can_be_cloned():
    model = TensorResponseRegressor(rank=(2, 2, 2), family="poisson", ridge=0.1)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    assert copy.set_params(ridge=0.2).ridge == 0.2


def bad(rank=2, family="normal", covariates=None, y=None, error=ParameterError, words="", **more):
    return pytest.param(rank, family, covariates, y, more, error, words, id=words[:40])


X = np.random.default_rng(0).standard_normal((6, 3))
Y = np.random.default_rng(1).standard_normal((6, 5, 4))
CONSTANT = np.concatenate([np.ones((6, 2)), X], axis=1)


@pytest.mark.parametrize(
    ("rank", "family", "covariates", "y", "more", "error", "words"),
    [
        bad(covariates=[X[:4], None, None], error=ShapeError,
            words=r"mode 0 has 6 indices and needs a covariate matrix of shape \(6, p\)"),
        bad(covariates=[X, None], error=ShapeError, words="needs 3 covariates, one for each mode"),
        bad(covariates=X, error=DtypeError, words="covariates must be a list"),
        bad(covariates={5: X}, words="covariates name 5, which is no mode"),
        bad(covariates=[np.where(X > 1, np.nan, X), None, None],
            words="covariates of mode 0 must be finite, got nan in row"),
        bad(covariates=[np.full((6, 2), "a"), None, None], error=DtypeError,
            words="covariates of mode 0 must be numbers"),
        bad(covariates=[np.zeros((6, 2)), None, None], words="covariate 'x0' of mode 0 is 0 in"),
        bad(covariates=[CONSTANT, None, None], words="'x0', 'x1' of mode 0 have zero variance"),
        bad(covariates=[X[None], None, None], error=ShapeError, words="must be a matrix"),
        bad(rank=(4, 4, 4), covariates=[X, None, None],
            words="mode 0 has 3 independent covariates, so its rank can be at most 3"),
        bad(rank=(1, 1, 2), words="the rank of mode 2 can be at most 1"),
        bad(rank=(2, 2), words="rank must be an integer at least 1, or a sequence of length 3"),
        bad(rank=0, words="parameter rank must be an integer at least 1"),
        bad(y=Y[:, 0, 0], error=ShapeError, words="at least 2 modes"),
        bad(family="binomial", words="needs a tensor of 0 and 1"),
        bad(family="poisson", words="needs counts"),
        bad(family="gamma", y=np.zeros((6, 5, 4)), words="needs positive values"),
        bad(family="probit", words="parameter family must be 'normal' or"),
        bad(y=np.where(np.arange(5)[:, None] == 3, np.nan, Y),
            words="every entry of slice 3 of mode 1 is missing, and mode 1 has no covariates"),
        bad(y=np.full((6, 5, 4), np.nan), words="every entry of the tensor is missing"),
        bad(symmetric=[(0, 1)], error=ShapeError, words=r"modes \(0, 1\) are tied and need equal"),
        bad(weights=-np.ones((6, 5, 4)), words="weights must be finite and at least 0"),
        bad(weights=np.zeros((6, 5, 4)), words="every observed entry has weight 0"),
        bad(weights=np.ones((7, 1, 1)), error=ShapeError, words=r"weights of shape \(7, 1, 1\)"),
        bad(offset=np.full((6, 1, 1), np.inf), words="the offset must be finite"),
        bad(mask=np.ones((6, 5, 4)), error=DtypeError, words="the mask must be boolean"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_clear_message(rank, family, covariates, y, more, error, words):
    y = Y if y is None else y
    symmetric = more.pop("symmetric", False)
    model = TensorResponseRegressor(rank=rank, family=family, symmetric=symmetric)
    with pytest.raises(error, match=f"^TensorResponseRegressor: .*{words}"):
        model.fit(y, covariates, **more)


def test_a_missing_slice_of_a_mode_with_covariates_is_predicted():
    y, covariates, truth = planted()
    y[3] = np.nan
    with pytest.warns(MissingSliceWarning, match="slice 3 of mode 0 is missing; it has no part"):
        model = TensorResponseRegressor(rank=2).fit(y, covariates)
    assert np.abs(model.predict()[3] - truth.mean[3]).mean() < 0.3


def test_what_cannot_be_predicted_is_said():
    y, covariates, _ = planted()
    with pytest.raises(NotFittedError):
        TensorResponseRegressor().predict()
    model = TensorResponseRegressor(rank=2).fit(y, covariates)
    with pytest.raises(ParameterError, match="mode 1 was fitted without covariates"):
        model.predict([None, np.ones((2, 2)), None])
    with pytest.raises(ShapeError, match="mode 0 was fitted with 4 covariates"):
        model.predict([np.ones((2, 3)), None, None])
    with pytest.raises(ParameterError, match="kind must be 'mean' or 'link'"):
        model.predict(kind="odds")
