import numpy as np
import pytest
import scipy.sparse

from tesseral._errors import ParameterError, ShapeError
from tesseral.cluster import (
    DegreeCorrectedTensorBlockModel,
    _coordinates,
    clustering_error_rate,
    diagnose,
    stability,
)
from tesseral.cluster._coordinates import CoordinateSource
from tesseral.cluster._data import read
from tesseral.cluster._dense import DenseSource
from tesseral.cluster._source import Grouping
from tesseral.cluster._sparse_start import marginal_rows
from tesseral.core import CooTensor
from tesseral.core.ties import symmetrize
from tesseral.datasets import load_peru, make_block_tensor

Model = DegreeCorrectedTensorBlockModel


def stored(array):
    coords = np.stack(np.nonzero(array))
    return CooTensor.from_entries(coords, np.asarray(array)[tuple(coords)], array.shape)


def both(shape, seed=0):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape) * (rng.random(shape) < 0.3)
    groupings = [
        Grouping(labels=rng.integers(2 + k % 2, size=d), size=2 + k % 2, weights=rng.random(d))
        for k, d in enumerate(shape)
    ]
    return DenseSource(array), CoordinateSource(stored(array)), groupings


def hypergraph(n=600, r=3, edges=20000, seed=0):
    """Return a planted hypergraph of three nodes an edge, 80% of them within clusters."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % r)
    chance = rng.uniform(0.3, 1.7, n)
    found = rng.choice(n, size=(edges, 3), p=chance / chance.sum())
    for a in range(r):
        rows = (np.arange(edges) % r == a) & (rng.random(edges) < 0.8)
        inside = chance * (labels == a)
        found[rows] = rng.choice(n, size=(rows.sum(), 3), p=inside / inside.sum())
    return CooTensor.from_hyperedges(found, n_nodes=n), labels


@pytest.mark.parametrize("piece", [7, 2**21])
@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4), (3, 4, 5, 4)], ids=str)
def test_all_answers_are_those_of_the_dense_tensor(shape, piece, monkeypatch):
    monkeypatch.setattr(_coordinates, "PIECE", piece)
    dense, sparse, groupings = both(shape)
    modes = range(len(shape))
    for name in ("sums", "exposures"):
        expected = getattr(dense, name)(groupings, modes)
        got = getattr(sparse, name)(groupings, modes)
        for mode in modes:
            np.testing.assert_allclose(got[mode], expected[mode], atol=1e-12)
    matrices = [np.random.default_rng(k).standard_normal((d, 2)) for k, d in enumerate(shape)]
    expected = dense.project(matrices, modes)
    for mode, rows in sparse.project(matrices, modes).items():
        np.testing.assert_allclose(rows, expected[mode], atol=1e-12)
        np.testing.assert_allclose(
            abs(sparse.vectors(mode, 2)), abs(dense.vectors(mode, 2)), atol=1e-9
        )
    assert sparse.squared_norm == pytest.approx(dense.squared_norm)
    assert sparse.n_observed == dense.n_observed


def test_the_bernoulli_likelihood_is_that_of_the_dense_tensor():
    rng = np.random.default_rng(0)
    ones = (rng.random((6, 7, 8)) < 0.1).astype(float)
    _, _, groupings = both(ones.shape)
    core = 0.05 + 0.3 * rng.random((2, 3, 2))
    expected = DenseSource(ones).bernoulli(groupings, core)
    assert CoordinateSource(stored(ones)).bernoulli(groupings, core) == pytest.approx(expected)
    with pytest.raises(ParameterError, match=r"the probability .* give family='poisson'"):
        CoordinateSource(stored(ones)).bernoulli(groupings, 20 * core)


@pytest.mark.parametrize("symmetric", [True, [(0, 1)], False, "auto"], ids=str)
@pytest.mark.parametrize("family", ["normal", "poisson", "binomial"])
def test_a_sparse_tensor_is_fitted_as_the_dense_one(symmetric, family):
    truth = make_block_tensor(
        (24,) * 3, 2, symmetric=True, family="binomial", slice_norm=0.2, random_state=0
    )
    dense = Model(2, symmetric=symmetric, family=family).fit(truth.tensor)
    sparse = Model(2, symmetric=symmetric, family=family).fit(stored(truth.tensor))
    np.testing.assert_array_equal(sparse.labels_[2], dense.labels_[2])
    np.testing.assert_allclose(sparse.core_, dense.core_, atol=1e-10)
    np.testing.assert_allclose(sparse.degrees_[1], dense.degrees_[1], atol=1e-8)
    assert sparse.bic_ == pytest.approx(dense.bic_)
    assert sparse.symmetric_ == dense.symmetric_
    assert sparse.score(stored(truth.tensor)) == pytest.approx(dense.score(truth.tensor))


def test_new_nodes_may_be_sparse_too():
    truth = make_block_tensor((24,) * 3, 2, contrast=30, family="poisson", random_state=0)
    model = Model(2, symmetric=False).fit(stored(truth.tensor))
    slices = truth.tensor[:, [5, 1]]
    got = model.predict(stored(slices), mode=1)
    np.testing.assert_array_equal(got, model.predict(slices, mode=1))


def test_many_nodes_start_from_marginals(monkeypatch):
    monkeypatch.setattr(_coordinates, "PROJECTED_UP_TO", 100)
    tensor, labels = hypergraph()
    model = Model(3, start="kmeans", random_state=0).fit(tensor)
    assert clustering_error_rate(labels, model.start_labels_[0]) < 0.05
    assert clustering_error_rate(labels, model.labels_[0]) < 0.01
    assert model.symmetric_ == ((0, 1, 2),)


def test_a_sparse_network_of_many_nodes_is_clustered(monkeypatch):
    monkeypatch.setattr(_coordinates, "PROJECTED_UP_TO", 100)
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 3
    chance = np.where(labels[:, None] == labels, 0.06, 0.01)
    upper = np.triu(rng.random((900, 900)) < chance, 1)
    model = Model(3, random_state=0).fit(scipy.sparse.csr_array(1.0 * (upper | upper.T)))
    assert clustering_error_rate(labels, model.labels_[0]) < 0.01


def test_the_bills_of_peru_make_its_tensor_off_repeated_indices():
    peru = load_peru()
    number = {name: i for i, name in enumerate(peru.legislator_id)}
    bills = {}
    for bill, name in zip(peru.law_cdn, peru.law_legislator_id, strict=True):
        bills.setdefault(bill, []).append(number[name])
    assert len(bills) == 802
    tensor = CooTensor.from_hyperedges(bills.values(), n_nodes=116)
    i, j, k = np.indices(peru.tensor.shape)
    distinct = (i != j) & (j != k) & (i != k)
    np.testing.assert_array_equal(tensor.to_dense()[distinct], peru.tensor[distinct])
    model = Model(5, random_state=0).fit(tensor)
    assert clustering_error_rate(peru.party, model.labels_[0]) < 0.13


def with_holes(truth, share, symmetric):
    """Return a tensor with NaN in it."""
    array = truth.tensor.astype(float)
    drawn = np.random.default_rng(0).random(array.shape)
    holes = (symmetrize(drawn, ((0, 1, 2),)) if symmetric else drawn) < share
    array[holes] = np.nan
    return array


@pytest.mark.parametrize("symmetric", [True, [(0, 1)], False, "auto"], ids=str)
@pytest.mark.parametrize("family", ["normal", "poisson", "binomial"])
def test_a_stored_nan_is_a_missing_entry_as_in_a_dense_tensor(symmetric, family):
    truth = make_block_tensor(
        (24,) * 3, 2, symmetric=True, family="binomial", slice_norm=0.2, random_state=0
    )
    array = with_holes(truth, 0.35 if symmetric == "auto" else 0.2, symmetric == "auto")
    sparse = stored(array)
    assert np.isnan(sparse.values).any()
    ours = Model(2, symmetric=symmetric, family=family, refine=True).fit(sparse)
    dense = Model(2, symmetric=symmetric, family=family, refine=True).fit(array)
    assert ours.symmetric_ == dense.symmetric_
    for mode in range(3):
        np.testing.assert_array_equal(ours.labels_[mode], dense.labels_[mode])
        np.testing.assert_allclose(ours.degrees_[mode], dense.degrees_[mode], atol=1e-8)
    np.testing.assert_allclose(ours.core_, dense.core_, atol=1e-10)
    assert ours.bic_ == pytest.approx(dense.bic_)
    assert ours.score(sparse) == pytest.approx(dense.score(array))
    np.testing.assert_array_equal(ours.predict(stored(array[:5])), dense.predict(array[:5]))


@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4), (3, 4, 5, 4)], ids=str)
def test_missing_entries_are_filled_as_in_a_dense_tensor(shape):
    array = np.random.default_rng(0).standard_normal(shape)
    array[np.random.default_rng(1).random(shape) < 0.5] = 0.0
    array[np.random.default_rng(2).random(shape) < 0.2] = np.nan
    dense, sparse = read("test", array).source, read("test", stored(array)).source
    ranks = (2,) * len(shape)
    filled = sparse.filled(ranks).tensor
    np.testing.assert_allclose(filled.to_dense(), dense.filled(ranks).tensor, atol=1e-8)
    assert len(filled.values) < np.prod(shape)


def test_marginals_are_divided_by_the_share_that_is_seen(monkeypatch):
    monkeypatch.setattr(_coordinates, "PROJECTED_UP_TO", 100)
    tensor, labels = hypergraph()
    gone = np.random.default_rng(0).random(len(tensor.values)) < 0.3
    values = np.where(gone, np.nan, tensor.values)
    model = Model(3, symmetric=True, start="kmeans", random_state=0)
    model.fit(CooTensor(coords=tensor.coords, values=values, shape=tensor.shape))
    assert clustering_error_rate(labels, model.labels_[0]) < 0.02
    ones = np.ones((4, 5, 6))
    part = stored(ones * (np.random.default_rng(1).random(ones.shape) < 0.7))
    hidden = stored(1.0 - part.to_dense())
    np.testing.assert_allclose(  # all that is seen is 1
        marginal_rows(part, 0, 2, hidden) @ np.diag([1, 0]),
        marginal_rows(stored(ones), 0, 2) @ np.diag([1, 0]),
        atol=1e-10,
    )


def test_parts_of_a_sparse_tensor_miss_what_it_misses():
    truth = make_block_tensor(
        (24,) * 3, 2, symmetric=True, family="binomial", slice_norm=0.7, random_state=0
    )
    array = with_holes(truth, 0.2, True)
    model = Model(2, symmetric=True).fit(stored(array))
    assert stability(model, stored(array), n_resamples=2, random_state=0)[0].error_rate < 0.2
    assert diagnose(model, stored(array), random_state=0)[0].regime == "polynomial time"


def test_what_a_sparse_tensor_cannot_be_is_refused():
    with pytest.raises(ParameterError, match=r"^DegreeCorrectedTensorBlockModel: .* takes no mask"):
        Model(2).fit(scipy.sparse.eye_array(4).tocsr(), mask=np.ones((4, 4), dtype=bool))
    with pytest.raises(ParameterError, match="every entry is zero"):
        Model(2).fit(scipy.sparse.csr_array((4, 4)))
    with pytest.raises(ParameterError, match="every entry of the tensor is missing"):
        Model(2).fit(stored(np.full((3, 3), np.nan)))
    with pytest.raises(ParameterError, match="contain infinity"):
        Model(2).fit(scipy.sparse.csr_array(np.array([[0.0, np.inf], [1.0, 0.0]])))
    line = CooTensor.from_entries([[0, 1]], [1.0, 2.0], (3,))
    with pytest.raises(ShapeError, match="needs a tensor with at least 2 modes"):
        Model(2).fit(line)
