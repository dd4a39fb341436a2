import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from support.frameworks import every_framework
from tesseral._errors import ParameterError, ShapeError
from tesseral.cluster import (
    DegreeCorrectedTensorBlockModel,
    HigherOrderLloyd,
    SpectralTensorClustering,
    clustering_error_rate,
)
from tesseral.core import CooTensor
from tesseral.datasets import load_peru, make_block_tensor

PEERS = {
    "HLloyd": HigherOrderLloyd(2, random_state=0),
    "HOSVD": SpectralTensorClustering(2, rows="plain", random_state=0),
    "HOSVD+": SpectralTensorClustering(2, rows="unit", random_state=0),
    "SCORE": SpectralTensorClustering(2, rows="ratio", random_state=0),
}
every_peer = pytest.mark.parametrize("name", PEERS)


def peer(name, **options):
    model = PEERS[name]
    return type(model)(**{**model.get_params(), **options})


def planted(shape=(30, 30, 30), r=3, **options):
    settings = {"symmetric": True, "noise": 0.1, "contrast": 20.0, "degrees": "equal"}
    return make_block_tensor(shape, r, random_state=0, **{**settings, **options})


@every_peer
@pytest.mark.parametrize(
    ("shape", "r", "symmetric"),
    [
        ((40, 40), 2, True),
        ((25, 25, 25), 3, True),
        ((24, 24, 18), (3, 3, 2), [(0, 1)]),
        ((12, 14, 13, 15), 2, False),
    ],
    ids=str,
)
def test_clear_clusters_without_degrees_are_found(name, shape, r, symmetric):
    truth = planted(shape, r, symmetric=symmetric, noise=0.02)
    model = peer(name, n_clusters=r, symmetric=symmetric).fit(truth.tensor)
    for mode, labels in enumerate(truth.labels):
        assert clustering_error_rate(labels, model.labels_[mode]) == 0
    assert np.linalg.norm(model.reconstruct() - truth.mean) < 0.1 * np.linalg.norm(truth.mean)
    assert model.score(truth.tensor) == pytest.approx(model.log_likelihood_ / truth.tensor.size)


@every_framework
@every_peer
def test_every_framework_gives_the_same_labels(name, make):
    truth = planted()
    model = peer(name, n_clusters=3, symmetric=True)
    ours = model.fit(truth.tensor).labels_[0]
    np.testing.assert_array_equal(model.fit(make(truth.tensor)).labels_[0], ours)


@every_peer
def test_missing_entries_and_sparse_tensors_are_taken(name):
    truth = planted((30, 30, 30), 2, family="poisson", slice_norm=2.0)
    mask = np.random.default_rng(0).random(truth.tensor.shape) < 0.8
    model = peer(name, n_clusters=2, symmetric=True)
    holes = model.fit(truth.tensor, mask=mask)
    assert clustering_error_rate(truth.labels[0], holes.labels_[0]) == 0
    coords = np.stack(np.nonzero(truth.tensor))
    sparse = CooTensor.from_entries(coords, truth.tensor[tuple(coords)], truth.tensor.shape)
    dense = model.fit(truth.tensor).labels_[0].copy()
    np.testing.assert_array_equal(model.fit(sparse).labels_[0], dense)


@every_peer
def test_new_nodes_join_the_clusters_of_their_kind(name):
    truth = planted((30, 25, 28), 3, symmetric=False)
    model = peer(name, n_clusters=3, symmetric=False).fit(truth.tensor)
    got = model.predict(truth.tensor[:, :4], mode=1)
    np.testing.assert_array_equal(got, model.labels_[1][:4])


@every_peer
def test_the_number_of_clusters_can_be_chosen(name):
    truth = planted(noise=0.5, contrast=40)
    model = peer(name, n_clusters="bic", symmetric=True, candidates=[2, 3, 4, 5])
    assert model.fit(truth.tensor).n_clusters_ == (3, 3, 3)


def test_methods_that_know_no_degrees_say_so():
    for name in ("HLloyd", "HOSVD"):
        model = peer(name).fit(load_peru().tensor)
        assert (model.degrees_[0] == 1).all()
    assert not (peer("SCORE").fit(load_peru().tensor).degrees_[0] == 1).all()


@pytest.mark.filterwarnings("ignore::tesseral._errors.TesseralWarning")
def test_degrees_are_what_they_miss():
    """On planted degrees with heavy tails ours is the best, as in the paper."""
    rates = {name: [] for name in ("ours", *PEERS)}
    for seed in range(4):
        truth = make_block_tensor(
            (50,) * 3, 4, symmetric=True, contrast=5, degrees="pareto", random_state=seed
        )
        models = {name: peer(name, n_clusters=4, symmetric=True) for name in PEERS}
        models["ours"] = DegreeCorrectedTensorBlockModel(4, symmetric=True)
        for name, model in models.items():
            labels = model.fit(truth.tensor).labels_[0]
            rates[name].append(clustering_error_rate(truth.labels[0], labels))
    mean = {name: np.mean(values) for name, values in rates.items()}
    assert mean["ours"] < 0.02
    assert mean["ours"] == min(mean.values())
    assert mean["HLloyd"] > 0.05


def test_ratios_are_cut_where_the_first_vector_is_small():
    vectors = np.array([[1e-12, 0.5], [0.5, -0.1], [0.0, -0.2], [0.5, 0.5]])
    rows = SpectralTensorClustering(rows="ratio")._scaled(vectors)
    np.testing.assert_allclose(rows[:, 0], [np.log(4), -0.2, -np.log(4), 1.0])


@every_peer
def test_what_cannot_be_clustered_is_refused(name):
    with pytest.raises(ParameterError, match="mode 0 has 4 nodes"):
        peer(name, n_clusters=5).fit(np.eye(4))
    with pytest.raises(ParameterError, match="every entry is zero"):
        peer(name).fit(np.zeros((4, 4)))
    with pytest.raises(ShapeError, match="equal sizes"):
        peer(name, symmetric=True).fit(np.ones((4, 5)))


EXPECTED_FAILURES = {
    "check_n_features_in": "a tensor has no sample axis, so no number of features either",
    "check_n_features_in_after_fitting": "a tensor has no number of features",
    "check_fit2d_predict1d": "a message about modes, not one to reshape the data",
    "check_estimators_empty_data_messages": "a message about modes, not samples and features",
}


@parametrize_with_checks(
    [HigherOrderLloyd(random_state=0), SpectralTensorClustering(random_state=0)],
    expected_failed_checks=lambda _: EXPECTED_FAILURES,
)
@pytest.mark.filterwarnings("ignore::tesseral._errors.TesseralWarning")
def test_the_contract_of_scikit_learn_holds(estimator, check):
    check(estimator)
