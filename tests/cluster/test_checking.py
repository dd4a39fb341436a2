import numpy as np
import pytest
import torch
from scipy.sparse import coo_array

from tesseral._errors import EvidenceWarning, ParameterError
from tesseral.cluster import (
    DegreeCorrectedTensorBlockModel,
    clustering_error_rate,
    diagnose,
    stability,
)
from tesseral.cluster._parts import folds
from tesseral.cluster._stability import _compare
from tesseral.core import CooTensor
from tesseral.core.ties import find_ties
from tesseral.datasets import make_block_tensor

Model = DegreeCorrectedTensorBlockModel


def planted(gamma, seed=0, p=40, **options):
    """Return data whose signal-to-noise ratio is that power of p, by the paper's recipe."""
    contrast = 1 + 40 * p ** (gamma / 2)
    return make_block_tensor(
        (p,) * 3, 3, symmetric=True, contrast=contrast, random_state=seed, **options
    )


def test_the_separation_is_that_of_the_planted_blocks():
    truth = planted(-1.0, noise=0.2)
    model = Model(3, symmetric=True).fit(truth.tensor)
    found = diagnose(model, truth.tensor, random_state=0)
    rows = truth.core.reshape(3, -1)
    unit = rows / np.linalg.norm(rows, axis=1)[:, None]
    distance = ((unit[0] - unit[1]) ** 2).sum()
    assert found[0].separation == pytest.approx(distance, rel=0.2)
    ratio = distance * (rows[0] ** 2).sum() / 0.04
    assert found[0].signal_to_noise == pytest.approx(ratio, rel=0.3)
    assert found[0].gamma == pytest.approx(np.log(found[0].signal_to_noise) / np.log(40))
    assert [entry.regime for entry in found] == ["polynomial time"] * 3


@pytest.mark.filterwarnings("ignore::tesseral._errors.ConvergenceWarning")
def test_noise_alone_is_reported():
    noise = np.random.default_rng(0).standard_normal((40, 40, 40))
    model = Model(3, symmetric=False).fit(noise)
    with pytest.warns(EvidenceWarning, match=r"mode 0 are separated by .* the labels may be noise"):
        found = diagnose(model, noise, random_state=0)
    assert found[0].regime != "polynomial time"


def test_one_cluster_needs_no_separation():
    tensor = planted(-1.0).tensor
    assert diagnose(Model(1).fit(tensor), tensor)[0].regime == "polynomial time"


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_counts_have_the_variance_of_their_family(family):
    truth = planted(-0.5, family=family)
    model = Model(3, symmetric=True, family=family).fit(truth.tensor)
    found = diagnose(model, truth.tensor, random_state=0)
    assert found[0].regime == "polynomial time"
    if family == "binomial":
        return
    coords = np.stack(np.nonzero(truth.tensor))
    sparse = CooTensor.from_entries(coords, truth.tensor[tuple(coords)], truth.tensor.shape)
    assert diagnose(model, sparse, random_state=0)[0].regime == "polynomial time"


def test_clear_labels_are_stable_and_noise_is_not():
    clear = planted(-1.0, noise=0.3)
    model = Model(3, symmetric=True).fit(clear.tensor)
    found = stability(model, clear.tensor, n_resamples=4, random_state=0)
    assert len(found) == 3
    assert found[0].error_rate == 0
    assert (found[0].nodes == 1).all()
    together = clear.labels[0][:, None] == clear.labels[0]
    np.testing.assert_array_equal(found[0].consensus, together)


@pytest.mark.filterwarnings("ignore::tesseral._errors.TesseralWarning")
def test_labels_of_noise_are_not_stable():
    noise = np.random.default_rng(0).standard_normal((30, 30, 30))
    model = Model(3, symmetric=False).fit(noise)
    found = stability(model, noise, n_resamples=4, random_state=0)
    assert found[0].error_rate > 0.2
    assert found[0].nodes.mean() < 0.9
    again = stability(model, noise, n_resamples=4, random_state=0)
    np.testing.assert_array_equal(found[0].consensus, again[0].consensus)


def test_resampling_takes_masks_sparse_tensors_and_torch():
    truth = planted(-0.5, family="poisson")
    mask = np.random.default_rng(0).random(truth.tensor.shape) < 0.9
    model = Model(3, symmetric=True).fit(truth.tensor, mask=mask)
    masked = stability(model, truth.tensor, mask=mask, n_resamples=2, random_state=0)
    assert masked[0].error_rate < 0.05
    coords = np.stack(np.nonzero(truth.tensor))
    sparse = CooTensor.from_entries(coords, truth.tensor[tuple(coords)], truth.tensor.shape)
    model = Model(3, symmetric=True).fit(sparse)
    assert stability(model, sparse, n_resamples=2, random_state=0)[0].error_rate < 0.05
    tensor = torch.from_numpy(truth.tensor)
    model = Model(3, symmetric=True).fit(tensor)
    assert stability(model, tensor, n_resamples=2, random_state=0)[0].error_rate < 0.05


def test_a_node_is_not_counted_among_its_companions():
    found = _compare(np.array([0, 0, 1]), [np.array([0, 1, 1]), np.array([0, 1, 2])])
    np.testing.assert_array_equal(found.nodes, [0, 0, 1])
    np.testing.assert_allclose(found.consensus[1], [0, 1, 0.5])
    assert found.error_rate == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_an_entry_and_its_reorderings_stay_together():
    X = np.random.default_rng(0).random((6, 6, 6))
    dealt = list(folds(X, None, ((0, 1, 2),), 3, np.random.default_rng(1)))
    for others, itself in dealt:
        np.testing.assert_array_equal(others.mask, ~itself.mask)
        assert find_ties(itself.mask) == ((0, 1, 2),)
        assert 0.2 < itself.mask.mean() < 0.5
    np.testing.assert_array_equal(sum(1 * itself.mask for _, itself in dealt), 1)


def network(n_nodes, chances, seed):
    """Return a network of teams, with chances of an edge within one and between two."""
    rng, team = np.random.default_rng(seed), np.arange(n_nodes) % 4
    chance = np.where(team[:, None] == team, *chances)
    edges = np.triu(rng.random(chance.shape) < chance, 1).astype(float)
    return edges + edges.T, team


def test_a_small_network_whose_teams_are_found_is_not_called_impossible():
    for seed in range(3):
        edges, team = network(60, (0.5, 0.05), seed)
        model = Model(4).fit(edges)
        assert clustering_error_rate(team, model.labels_[0]) == 0
        (entry, _) = diagnose(model, edges, random_state=0)
        assert entry.regime == "polynomial time"
        assert entry.signal_to_noise > 0.06


def test_a_sparse_tensor_has_the_ratio_of_the_same_dense_one():
    edges, _ = network(60, (0.8, 0.1), 0)
    dense, sparse = (
        diagnose(Model(4, family="poisson").fit(X), X, random_state=0)[0]
        for X in (edges, coo_array(edges))
    )
    assert sparse.signal_to_noise == pytest.approx(dense.signal_to_noise, rel=0.3)


def test_options_of_resampling_are_checked():
    truth = planted(-1.0, noise=0.3)
    model = Model(3, symmetric=True).fit(truth.tensor)
    with pytest.raises(ParameterError, match="parameter share must be"):
        stability(model, truth.tensor, share=0)
