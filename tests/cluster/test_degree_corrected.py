import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from support.frameworks import every_framework, to_numpy
from tesseral._errors import (
    ConvergenceWarning,
    DtypeError,
    EvidenceWarning,
    ParameterError,
    ShapeError,
)
from tesseral.cluster import DegreeCorrectedTensorBlockModel, clustering_error_rate
from tesseral.cluster._spectral import square_rows
from tesseral.core import Reason
from tesseral.datasets import load_peru, make_block_tensor

Model = DegreeCorrectedTensorBlockModel


def planted(shape=(30, 30, 30), r=3, *, symmetric=True, noise=0.3, contrast=20.0, **options):
    return make_block_tensor(
        shape, r, symmetric=symmetric, noise=noise, contrast=contrast, random_state=0, **options
    )


def errors(model, truth):
    return [clustering_error_rate(a, b) for a, b in zip(truth.labels, model.labels_, strict=True)]


@pytest.mark.parametrize(
    ("shape", "r", "symmetric"),
    [
        ((60, 60), 3, True),
        ((60, 50), (3, 3), False),
        ((25, 25, 25), 3, True),
        ((20, 25, 30), (2, 3, 3), False),
        ((24, 24, 18), (3, 3, 2), [(0, 1)]),
        ((12, 12, 12, 12), 2, True),
        ((10, 12, 10, 12), (2, 3, 2, 3), [(0, 2), (1, 3)]),
        ((8, 8, 8, 8, 8), 2, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", ["pool", "first"])
def test_planted_clusters_are_found_for_every_order_and_symmetry(shape, r, symmetric, tied):
    truth = planted(shape, r, symmetric=symmetric, noise=0.05)
    model = Model(r, symmetric=symmetric, tied=tied).fit(truth.tensor)
    assert errors(model, truth) == [0.0] * len(shape)
    assert model.converged_
    assert model.reason_ is Reason.SAME_LABELS
    assert model.reconstruct().shape == shape
    difference = np.linalg.norm(model.reconstruct() - truth.mean)
    assert difference < 0.25 * np.linalg.norm(truth.mean)


@every_framework
def test_every_framework_gives_the_same_labels_and_its_own_arrays(make):
    truth = planted()
    model = Model(3, symmetric=True).fit(make(truth.tensor))
    ours = Model(3, symmetric=True).fit(truth.tensor)
    np.testing.assert_array_equal(model.labels_[0], ours.labels_[0])
    np.testing.assert_allclose(to_numpy(model.core_), ours.core_, atol=1e-10)
    assert type(model.core_) is type(model.degrees_[0]) is type(make(truth.tensor))
    assert model.bic_ == pytest.approx(ours.bic_)


@every_framework
@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"tied": "first"}, 0.0),
        ({"symmetric": False, "refine": True}, 0.2),
        ({"family": "binomial", "refine": True}, 0.0),
        ({"family": "binomial", "refine": True}, 0.2),
        ({"family": "poisson", "refine": True, "symmetric": [(0, 1)]}, 0.2),
        ({"projection": "square"}, 0.0),
        ({"n_clusters": "bic", "candidates": [2, 3, 4]}, 0.0),
    ],
    ids=str,
)
def test_every_path_leads_to_the_same_in_every_framework(make, options, missing):
    family = options.get("family", "normal")
    truth = planted((20, 20, 20), family=family, slice_norm=0.7)
    tensor = truth.tensor.astype(float)
    tensor[np.random.default_rng(0).random(tensor.shape) < missing] = np.nan
    settings = {"n_clusters": 3, "symmetric": True, **options}
    ours = Model(**settings).fit(tensor)
    model = Model(**settings).fit(make(tensor))
    for labels, expected in zip(model.labels_, ours.labels_, strict=True):
        np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(to_numpy(model.reconstruct()), ours.reconstruct(), atol=1e-8)
    assert model.score(make(tensor)) == pytest.approx(ours.score(tensor))
    np.testing.assert_array_equal(model.predict(make(tensor[:5])), ours.predict(tensor[:5]))


def test_single_precision_stays_single():
    truth = planted()
    model = Model(3, symmetric=True).fit(truth.tensor.astype(np.float32))
    assert model.core_.dtype == np.float32
    assert errors(model, truth) == [0.0] * 3


@pytest.mark.parametrize("start", ["medoids", "kmeans"])
def test_both_ways_to_start_find_what_is_clear(start):
    truth = planted()
    model = Model(3, symmetric=True, start=start, random_state=0).fit(truth.tensor)
    assert errors(model, truth) == [0.0] * 3


def test_a_few_nodes_of_large_degree_are_not_clusters_of_their_own():
    truth = make_block_tensor(
        (50,) * 3,
        4,
        symmetric=True,
        family="binomial",
        contrast=4,
        degrees="pareto",
        pareto_shape=3.0,
        balanced=False,
        random_state=25,
    )
    by_length = Model(4, symmetric=True, start="medoids").fit(truth.tensor)
    assert errors(by_length, truth)[0] > 0.05
    model = Model(4, symmetric=True).fit(truth.tensor)
    assert errors(model, truth)[0] == 0
    assert model.history_[-1] > by_length.history_[-1]


@pytest.mark.parametrize(
    ("shape", "symmetric"), [((60, 60), True), ((25,) * 3, True), ((14, 12, 13, 15), False)]
)
def test_the_square_unfolding_is_another_start(shape, symmetric):
    truth = planted(shape, 2, symmetric=symmetric, family="binomial", slice_norm=0.7)
    model = Model(2, symmetric=symmetric, projection="square").fit(truth.tensor)
    assert (
        max(
            clustering_error_rate(a, b)
            for a, b in zip(truth.labels, model.start_labels_, strict=True)
        )
        < 0.3
    )
    assert max(errors(model, truth)) < 0.05
    with pytest.raises(ParameterError, match="needs a dense array"):
        Model(2, projection="square").fit(scipy.sparse.eye_array(5).tocsr())


@pytest.mark.parametrize("shape", [(9, 7), (7, 6, 8), (5, 4, 6, 5), (3, 4, 3, 2, 4)], ids=str)
def test_square_rows_have_the_angles_of_the_cut_unfolding(shape):
    tensor = np.random.default_rng(0).standard_normal(shape)
    half = len(shape) // 2
    u, s, vh = np.linalg.svd(tensor.reshape(np.prod(shape[:half]), -1), full_matrices=False)
    rank = min(2**half, 2 ** (len(shape) - half), len(s))
    cut = ((u[:, :rank] * s[:rank]) @ vh[:rank]).reshape(shape)
    for mode, rows in enumerate(square_rows(tensor, [2] * len(shape))):
        whole = np.moveaxis(cut, mode, 0).reshape(shape[mode], -1)
        np.testing.assert_allclose(rows @ rows.T, whole @ whole.T, atol=1e-10)


def test_labels_of_pandas_and_xarray_are_carried_through():
    import pandas as pd
    import xarray as xr

    truth = planted((20, 20), 2, noise=0.1)
    names = [f"n{i}" for i in range(20)]
    frame = pd.DataFrame(truth.tensor, index=names, columns=np.arange(20) * 2)
    model = Model(2).fit(frame)
    assert model.node_names_[0].tolist() == names
    assert model.node_names_[1].tolist() == list(range(0, 40, 2))
    array = xr.DataArray(truth.tensor, dims=("a", "b"), coords={"b": names})
    named = Model(2).fit(array)
    assert named.node_names_[0].tolist() == list(range(20))
    assert named.node_names_[1].tolist() == names
    np.testing.assert_array_equal(named.labels_[0], model.labels_[0])
    assert Model(2).fit(truth.tensor).node_names_[0].tolist() == list(range(20))


def test_given_labels_are_where_it_starts():
    truth = planted()
    moved = truth.labels[0].copy()
    moved[:6] = (moved[:6] + 1) % 3
    model = Model(3, symmetric=True, start=[moved] * 3).fit(truth.tensor)
    np.testing.assert_array_equal(model.start_labels_[0], moved)
    assert errors(model, truth) == [0.0] * 3
    alone = Model(3, symmetric=True, start=moved).fit(truth.tensor)
    np.testing.assert_array_equal(alone.labels_[0], model.labels_[0])


def test_pooling_is_the_same_as_averaging_the_data_first():
    truth = planted(noise=1.0)
    mean = np.mean(
        [
            truth.tensor.transpose(a)
            for a in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        ],
        axis=0,
    )
    pooled = Model(3, symmetric=True).fit(truth.tensor)
    averaged = Model(3, symmetric=True, tied="first").fit(mean)
    np.testing.assert_array_equal(pooled.labels_[0], averaged.labels_[0])
    np.testing.assert_allclose(pooled.core_, averaged.core_)


def test_auto_ties_what_is_exactly_symmetric():
    mirrored = planted(symmetric_noise=True)
    model = Model(3).fit(mirrored.tensor)
    assert model.symmetric_ == ((0, 1, 2),)
    assert Model(3).fit(planted().tensor).symmetric_ == ((0,), (1,), (2,))
    named = Model(3, symmetric=True).fit(mirrored.tensor)
    np.testing.assert_array_equal(model.labels_[0], named.labels_[0])


def test_degrees_have_mean_one_and_point_with_the_truth():
    truth = planted(noise=0.02)
    model = Model(3, symmetric=True).fit(truth.tensor)
    for a in range(3):
        assert model.degrees_[0][model.labels_[0] == a].mean() == pytest.approx(1)
    assert np.corrcoef(model.degrees_[0], truth.degrees[0])[0, 1] > 0.95


def test_clusters_are_numbered_from_the_largest():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [5, 15, 10])
    rows = np.eye(3)[labels] @ (np.eye(3) + 0.1)
    tensor = np.einsum("ia,ja,ka", rows, rows, rows) + 0.01 * rng.standard_normal((30,) * 3)
    model = Model(3, symmetric=True).fit(tensor)
    np.testing.assert_array_equal(np.bincount(model.labels_[0]), [15, 10, 5])


def test_the_order_of_nodes_and_of_modes_changes_nothing():
    truth = planted((20, 25, 30), (2, 3, 3), symmetric=False, noise=0.2)
    model = Model((2, 3, 3), symmetric=False).fit(truth.tensor)
    order = np.random.default_rng(1).permutation(25)
    mixed = Model((2, 3, 3), symmetric=False).fit(truth.tensor[:, order])
    assert clustering_error_rate(mixed.labels_[1], model.labels_[1][order]) == 0
    turned = Model((3, 2, 3), symmetric=False).fit(truth.tensor.transpose(2, 0, 1))
    for mode, old in enumerate((2, 0, 1)):
        assert clustering_error_rate(turned.labels_[mode], model.labels_[old]) == 0


def test_scaling_nodes_changes_nothing_where_there_is_no_noise():
    truth = planted((20, 25, 30), (2, 3, 3), symmetric=False, noise=0.0)
    scales = [np.random.default_rng(k).uniform(0.2, 5, d) for k, d in enumerate((20, 25, 30))]
    scaled = truth.tensor * np.einsum("i,j,k", *scales)
    model = Model((2, 3, 3), symmetric=False).fit(scaled)
    assert errors(model, truth) == [0.0] * 3


@pytest.mark.filterwarnings("ignore::tesseral._errors.ConvergenceWarning")
def test_recovery_improves_with_the_signal():
    found = []
    for gamma in (-2.0, -1.5, -1.0):
        contrast = 1 + 40 * 40 ** (gamma / 2)
        rates = []
        for seed in range(5):
            truth = make_block_tensor(
                (40,) * 3, 3, symmetric=True, contrast=contrast, noise=1.5, random_state=seed
            )
            rates.append(errors(Model(3, symmetric=True).fit(truth.tensor), truth)[0])
        found.append(np.mean(rates))
    assert found[0] > found[1] > found[2] < 0.01


def test_missing_entries_are_left_out_whether_masked_or_nan():
    truth = planted((40, 40, 40), noise=0.5)
    mask = np.random.default_rng(0).random(truth.tensor.shape) < 0.7
    holes = np.where(mask, truth.tensor, np.nan)
    for symmetric in (True, False):
        by_nan = Model(3, symmetric=symmetric).fit(holes)
        by_mask = Model(3, symmetric=symmetric).fit(truth.tensor, mask=mask)
        np.testing.assert_array_equal(by_nan.labels_[0], by_mask.labels_[0])
        assert max(errors(by_nan, truth)) == 0
        complete = Model(3, symmetric=symmetric).fit(truth.tensor)
        np.testing.assert_allclose(by_nan.degrees_[0], complete.degrees_[0], atol=0.35)
    assert by_nan.noise_variance_ == pytest.approx(0.25, rel=0.1)


def test_nodes_that_miss_a_whole_block_of_others_are_placed_by_the_rest():
    truth = planted((40, 40, 40), noise=0.2)
    mask = np.ones((40,) * 3, dtype=bool)
    mask[:5, truth.labels[1] == 0] = False
    model = Model(3, symmetric=False).fit(truth.tensor, mask=mask)
    assert max(errors(model, truth)) == 0


def test_degrees_do_not_depend_on_which_partners_are_seen():
    truth = planted((40, 40, 40), symmetric=False, noise=0.0)
    mask = np.ones((40,) * 3, dtype=bool)
    small = truth.degrees[1] < np.median(truth.degrees[1])
    mask[np.ix_(np.arange(10), small)] = False  # the first ten see large nodes alone
    model = Model(3, symmetric=False).fit(truth.tensor, mask=mask)
    assert max(errors(model, truth)) == 0
    np.testing.assert_allclose(model.degrees_[0], truth.degrees[0], rtol=0.05)


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_the_criterion_of_counts_weighs_likelihood_against_parameters(family):
    truth = planted((40, 40, 40), 2, family=family, slice_norm=0.7, contrast=8)
    model = Model("bic", symmetric=True, family=family, candidates=[1, 2, 3, 4])
    model.fit(truth.tensor)
    assert model.n_clusters_ == (2, 2, 2)
    parameters = 2**3 + 40 * np.log(2) + 40 - 2
    expected = parameters * np.log(40**3) - 2 * model.log_likelihood_
    assert model.bic_ == pytest.approx(expected)


def test_new_nodes_join_the_clusters_of_their_kind():
    truth = planted((30, 25, 28), 3, symmetric=False, noise=0.1)
    model = Model(3, symmetric=False).fit(truth.tensor)
    for mode in range(-1, 3):
        parts = 5.0 * np.take(truth.tensor, [3, 1, 4], axis=mode)
        np.testing.assert_array_equal(model.predict(parts, mode), model.labels_[mode][[3, 1, 4]])
    holes = truth.tensor[:4].copy()
    holes[:, ::3] = np.nan
    np.testing.assert_array_equal(model.predict(holes), model.labels_[0][:4])
    assert model.predict(np.zeros((1, 25, 28))).tolist() == [0]


@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
@pytest.mark.parametrize("refine", [False, True])
def test_the_score_is_the_mean_log_likelihood(family, refine):
    truth = planted((20, 22, 24), 2, symmetric=False, family=family, slice_norm=0.3)
    mask = np.random.default_rng(0).random(truth.tensor.shape) < 0.9
    model = Model(2, symmetric=False, family=family, refine=refine).fit(truth.tensor, mask=mask)
    y, mean = truth.tensor, model.reconstruct()
    if family == "normal":
        v = model.noise_variance_
        terms = -0.5 * np.log(2 * np.pi * v) - (y - mean) ** 2 / (2 * v)
    elif family == "binomial":
        mean = mean.clip(1e-6, 1 - 1e-6)
        terms = np.where(y == 1, np.log(mean), np.log(1 - mean))
    else:
        factorials = np.array([np.log(np.arange(1, n + 1)).sum() for n in range(int(y.max()) + 1)])
        terms = y * np.log(np.maximum(mean, 1e-300)) - mean - factorials[y]
    assert model.score(y, mask=mask) == pytest.approx(terms[mask].mean())
    assert model.log_likelihood_ == pytest.approx(terms[mask].sum())


@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_refinement_raises_the_likelihood_and_keeps_clear_clusters(family, symmetric):
    truth = planted((30, 30, 30), 3, family=family, slice_norm=0.5, noise=0.5)
    plain = Model(3, symmetric=symmetric, family=family).fit(truth.tensor)
    refined = Model(3, symmetric=symmetric, family=family, refine=True).fit(truth.tensor)
    assert refined.log_likelihood_ >= plain.log_likelihood_ - 1e-6 * abs(plain.log_likelihood_)
    assert all(a <= b for a, b in zip(refined.history_, refined.history_[1:], strict=False))
    assert refined.history_[-1] == pytest.approx(refined.log_likelihood_)
    assert max(errors(refined, truth)) <= max(errors(plain, truth)) + 0.01


def test_refining_a_part_of_peru_raises_its_likelihood():
    tensor = load_peru().tensor[:40, :40, :40]
    plain = Model(3, family="binomial").fit(tensor)
    refined = Model(3, family="binomial", refine=True).fit(tensor)
    # the same labels at their likeliest degrees, and where that leads
    assert refined.history_[0] > plain.log_likelihood_
    assert refined.log_likelihood_ == refined.history_[-1] >= refined.history_[0]


def test_the_criterion_chooses_the_planted_number():
    truth = planted((40, 40, 40), 3, noise=0.5, contrast=40)
    model = Model("bic", symmetric=True).fit(truth.tensor)
    assert model.n_clusters_ == (3, 3, 3)
    assert list(model.bic_path_) == [(r, r, r) for r in range(1, 9)]
    assert model.bic_ == min(model.bic_path_.values()) == model.bic_path_[3, 3, 3]
    alone = Model(3, symmetric=True).fit(truth.tensor)
    np.testing.assert_array_equal(alone.labels_[0], model.labels_[0])


def test_modes_may_get_different_numbers_of_clusters():
    truth = planted((30, 32, 34), (2, 3, 3), symmetric=False, noise=0.3, contrast=40)
    model = Model("bic", symmetric=False, candidates=[2, 3, 4]).fit(truth.tensor)
    assert model.n_clusters_ == (2, 3, 3)
    named = Model("bic", symmetric=False, candidates=[(2, 2, 2), (2, 3, 3), (3, 4, 4)])
    assert named.fit(truth.tensor).n_clusters_ == (2, 3, 3)


def test_a_choice_at_the_edge_of_the_candidates_is_reported():
    truth = planted((40, 40, 40), 4, noise=0.5, contrast=40)
    with pytest.warns(EvidenceWarning, match=r"smallest BIC lies at the edge .* 3 clusters"):
        Model("bic", symmetric=True, candidates=[1, 2, 3]).fit(truth.tensor)


def test_a_mode_of_few_nodes_does_not_limit_the_others():
    random, labels = np.random.default_rng(0), np.repeat(np.arange(4), 15)
    means = 2 * random.standard_normal((4, 4, 2))
    tensor = means[labels][:, labels] + 0.5 * random.standard_normal((60, 60, 2))
    for candidates in (None, [2, 3, 4, 5]):
        model = Model("bic", symmetric=False, candidates=candidates).fit(tensor)
        assert model.n_clusters_ == (4, 4, 2)
        assert clustering_error_rate(labels, model.labels_[0]) == 0


def test_a_matrix_of_one_column_has_one_cluster():
    column = np.random.default_rng(0).random((12, 1))
    assert Model("bic", symmetric=False).fit(column).n_clusters_ == (1, 1)


def test_one_cluster_is_one_cluster():
    model = Model(1).fit(planted().tensor)
    assert [set(z.tolist()) for z in model.labels_] == [{0}] * 3
    assert model.core_.shape == (1, 1, 1)
    mixed = Model((1, 2, 2), symmetric=False).fit(planted((20, 30, 30), 2, symmetric=False).tensor)
    assert set(mixed.labels_[0].tolist()) == {0}


def test_a_node_without_signal_joins_the_largest_cluster_with_degree_zero():
    truth = planted(noise=0.1)
    tensor = truth.tensor.copy()
    tensor[4], tensor[:, 4], tensor[:, :, 4] = 0, 0, 0
    model = Model(3, symmetric=True).fit(tensor)
    assert model.labels_[0][4] == 0
    assert model.degrees_[0][4] == 0
    others = np.arange(30) != 4
    assert clustering_error_rate(truth.labels[0][others], model.labels_[0][others]) == 0


def test_more_clusters_than_the_data_show_are_filled_and_reported():
    labels = np.arange(12) % 2
    tensor = np.einsum("ia,ja,ka", *[np.eye(2)[labels] + 0.1] * 3)
    with pytest.warns(EvidenceWarning, match=r"3 of the clusters of mode 0 were empty"):
        model = Model(5, symmetric=True).fit(tensor)
    assert np.bincount(model.labels_[0], minlength=5).min() >= 1


def test_as_many_clusters_as_nodes_end():
    tensor = np.random.default_rng(0).random((4, 4, 4))
    model = Model(4, symmetric=False).fit(tensor)
    assert sorted(model.labels_[0].tolist()) == [0, 1, 2, 3]


def test_running_out_of_iterations_warns():
    truth = planted(noise=3.0, contrast=3)
    with pytest.warns(ConvergenceWarning, match=r"^DegreeCorrectedTensorBlockModel: stopped after"):
        model = Model(3, symmetric=True, max_iter=1).fit(truth.tensor)
    assert not model.converged_


@pytest.mark.parametrize(
    ("tensor", "options", "error", "words"),
    [
        (np.ones(5), {}, ShapeError, "at least 2 modes"),
        (np.ones((4, 4, 4)), {}, ParameterError, "all nodes of mode 0 are alike"),
        (np.zeros((4, 4, 4)), {}, ParameterError, "every entry is zero"),
        (np.full((4, 4), np.nan), {}, ParameterError, "every entry of the tensor is missing"),
        (np.eye(4) * 1j, {}, ParameterError, "must be real"),
        (np.array([["a", "b"], ["c", "d"]]), {}, DtypeError, "must be real numbers"),
        (np.eye(4), {"n_clusters": 5}, ParameterError, "mode 0 has 4 nodes"),
        (np.eye(4), {"n_clusters": 0}, ParameterError, "parameter n_clusters must be"),
        (np.eye(4), {"n_clusters": "aic"}, ParameterError, "parameter n_clusters must be"),
        (np.eye(4), {"n_clusters": (2, 2, 2)}, ParameterError, "sequence of length 2"),
        (
            np.eye(4),
            {"n_clusters": (2, 1), "symmetric": False},
            ParameterError,
            "leaves one block only",
        ),
        (np.ones((4, 5)), {"symmetric": True}, ShapeError, r"tied and need equal sizes"),
        (np.eye(4), {"symmetric": [(0, 2)]}, ParameterError, "symmetric must be"),
        (np.eye(4), {"n_clusters": (2, 3), "symmetric": True}, ShapeError, "equal n_clusters"),
        (np.eye(4), {"start": "random"}, ParameterError, "parameter start must be"),
        (np.eye(4), {"start": [[0, 1]], "symmetric": False}, ShapeError, "one label array"),
        (np.eye(4), {"start": [[0, 1]] * 2}, ShapeError, "needs 4 labels for mode 0"),
        (np.eye(4), {"start": [[0, 1, 0, 2]] * 2}, ParameterError, "below 2"),
        (
            np.eye(4),
            {"start": [[0, 1, 0, 1], [1, 0, 1, 0]], "symmetric": True},
            ParameterError,
            "different labels",
        ),
        (2 * np.eye(4), {"family": "binomial"}, ParameterError, "needs entries 0 and 1"),
        (-np.eye(4), {"family": "poisson"}, ParameterError, "smallest entry is -1"),
        (np.eye(4), {"n_clusters": "bic", "candidates": []}, ParameterError, "candidates"),
        (np.array([[1.0, np.inf], [0, 1]]), {}, ParameterError, "contains infinity"),
    ],
)
def test_what_cannot_be_clustered_is_refused_in_words(tensor, options, error, words):
    with pytest.raises(error, match=words):
        Model(**options).fit(tensor)


def test_a_slice_without_any_observed_entry_joins_the_largest_cluster():
    truth = planted(noise=0.1)
    tensor = truth.tensor.copy()
    tensor[4] = np.nan
    model = Model(3, symmetric=False).fit(tensor)
    assert model.labels_[0][4] == 0
    assert np.isfinite(model.degrees_[0]).all()


def test_new_nodes_must_fit_what_was_fitted():
    model = Model(2, symmetric=False).fit(planted((12, 10, 8), 2, symmetric=False).tensor)
    with pytest.raises(ShapeError, match=r"new nodes of mode 1 need shape \(12, 'n', 8\)"):
        model.predict(np.ones((12, 3, 9)), mode=1)
    with pytest.raises(ShapeError, match=r"score: needs shape \(12, 10, 8\)"):
        model.score(np.ones((12, 10, 9)))


def test_torch_tensors_that_are_recorded_are_read():
    truth = planted()
    tensor = torch.from_numpy(truth.tensor).requires_grad_()
    assert errors(Model(3, symmetric=True).fit(tensor.detach()), truth) == [0.0] * 3


EXPECTED_FAILURES = {
    "check_n_features_in": "a tensor has no sample axis, so no number of features either",
    "check_n_features_in_after_fitting": "a tensor has no number of features",
    "check_fit2d_predict1d": "a message about modes, not one to reshape the data",
    "check_estimators_empty_data_messages": "a message about modes, not samples and features",
}


@parametrize_with_checks(
    [Model(random_state=0)], expected_failed_checks=lambda _: EXPECTED_FAILURES
)
@pytest.mark.filterwarnings("ignore::tesseral._errors.TesseralWarning")
def test_the_contract_of_scikit_learn_holds(estimator, check):
    check(estimator)
