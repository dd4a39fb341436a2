import io

import numpy as np
import pytest

from tesseral._errors import ParameterError
from tesseral.datasets import make_tensor_response
from tesseral.regress import TensorResponseRegressor, group_rows, plots


@pytest.fixture(scope="module")
def model():
    truth = make_tensor_response(
        (14, 12, 30), 2, (None, None, 3), family="binomial", signal=4.0, random_state=0
    )
    y = truth.tensor.astype(float)
    y[0, :3] = np.nan
    return TensorResponseRegressor(rank=2, family="binomial").fit(y, list(truth.covariates))


def drawn(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert buffer.tell() > 1000
    return figure.axes[0]


def test_slices_show_the_coefficients_of_each_covariate(model):
    axis = drawn(plots.coefficient_slices(model, 2, [0, 2]))
    np.testing.assert_array_equal(axis.images[0].get_array(), model.coef_[:, :, 0])
    assert axis.get_title() == "x0"
    limits = [axis.images[0].get_clim()[1] for axis in axis.figure.axes[:2]]
    assert limits == [np.abs(model.coef_[:, :, k]).max() for k in (0, 2)]


def test_loadings_carry_the_names_of_their_rows(model):
    axis = drawn(plots.factor_loadings(model, 2))
    np.testing.assert_array_equal(axis.images[0].get_array(), model.factors_[2])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["x0", "x1", "x2"]


def test_predicted_and_observed_means_agree_for_a_good_fit(model):
    axis = drawn(plots.predicted_observed(model, bins=10))
    line = axis.containers[0].lines[0]
    x, y = line.get_data()
    assert len(x) == 10
    assert np.abs(x - y).max() < 0.05


def test_residuals_have_unit_size_and_holes_stay_empty(model):
    axis = drawn(plots.residual_map(model, 2))
    shown = axis.images[0].get_array()
    assert 0.7 < np.median(np.ma.compressed(shown)) < 1.3
    slice_axis = drawn(plots.residual_map(model, 2, 5))
    assert np.ma.getmaskarray(slice_axis.images[0].get_array())[0, :3].all()
    rows = model._setup.covariates[0].rows
    assert [tick.get_text() for tick in slice_axis.get_yticklabels()] == list(rows)[:20]


def test_slices_of_a_matrix_are_columns_with_the_names_of_their_rows():
    truth = make_tensor_response((12, 10), 2, (3, 2), random_state=0)
    model = TensorResponseRegressor(rank=2).fit(truth.tensor, list(truth.covariates))
    axis = drawn(plots.residual_map(model, 1))
    assert axis.images[0].get_array().shape == (12, 1)
    assert len(axis.get_yticklabels()) == 12
    assert len(axis.get_xticks()) == 0


def test_effects_show_only_what_differs_from_zero(model):
    axis = drawn(plots.effects(model, 2, "x1"))
    tests = model.coef_tests(correction="fdr")
    clear = tests.adjusted[:, :, 1] <= 0.05
    np.testing.assert_array_equal(~np.ma.getmaskarray(axis.images[0].get_array()), clear)
    assert f"{clear.sum()} of {clear.size}" in axis.get_title()
    with pytest.raises(ParameterError, match="mode 2 has no covariate 'age'; it has x0, x1, x2"):
        plots.effects(model, 2, "age")


def test_the_curve_names_the_best_rank():
    truth = make_tensor_response((12, 10, 8), 2, None, random_state=0)
    model = TensorResponseRegressor(rank="bic", candidates=[(1, 1, 1), (2, 2, 2)])
    model.fit(truth.tensor)
    axis = drawn(plots.selection_curve(model.selection_))
    assert axis.texts[0].get_text() == "x".join(map(str, model.rank_))


def test_rows_with_slices_of_one_direction_are_one_group():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [12, 10, 8])
    factor = np.eye(3)[labels] * rng.uniform(0.5, 2, (30, 1))
    y = np.einsum("ia,ja,ka->ijk", factor, *rng.standard_normal((2, 9, 3)))
    model = TensorResponseRegressor(rank=3).fit(y + 0.01 * rng.standard_normal(y.shape))
    np.testing.assert_array_equal(group_rows(model, 0, 3), labels)
    with pytest.raises(ParameterError, match="n_groups must be an integer from 1 to 30"):
        group_rows(model, 0, 31)
