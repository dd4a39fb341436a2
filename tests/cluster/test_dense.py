import numpy as np
import pytest

from support.frameworks import every_framework, to_numpy
from tesseral.cluster import _dense
from tesseral.cluster._dense import DenseSource
from tesseral.cluster._source import Grouping


def problem(shape, sizes, seed=0):
    rng = np.random.default_rng(seed)
    tensor = rng.standard_normal(shape)
    groupings = [
        Grouping(labels=rng.integers(r, size=d), size=r, weights=rng.random(d))
        for d, r in zip(shape, sizes, strict=True)
    ]
    return tensor, groupings


def members(grouping):
    return np.eye(grouping.size)[grouping.labels] * grouping.weights[:, None]


def slow_sums(tensor, groupings, mode):
    for k, grouping in enumerate(groupings):
        if k != mode:
            tensor = np.moveaxis(np.tensordot(members(grouping).T, tensor, (1, k)), 0, k)
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


@every_framework
@pytest.mark.parametrize("shape", [(5, 4), (4, 6, 5), (3, 4, 5, 2), (3, 2, 4, 3, 2)], ids=str)
def test_sums_over_blocks_are_products_with_memberships(make, shape):
    sizes = [min(2 + k % 2, d) for k, d in enumerate(shape)]
    tensor, groupings = problem(shape, sizes)
    source = DenseSource(make(tensor))
    found = source.sums(groupings, range(len(shape)))
    for mode in range(len(shape)):
        expected = slow_sums(tensor, groupings, mode)
        np.testing.assert_allclose(found[mode], expected, atol=1e-12)
        np.testing.assert_allclose(source.sums(groupings, [mode])[mode], expected, atol=1e-12)
    assert source.squared_norm == pytest.approx((tensor**2).sum())


def test_exposures_are_the_sums_of_a_mask():
    tensor, groupings = problem((4, 6, 5), (2, 3, 2))
    mask = np.random.default_rng(1).random(tensor.shape) < 0.7
    source = DenseSource(tensor * mask, 1.0 * mask)
    complete = DenseSource(tensor).exposures(groupings, [0, 1, 2])
    for mode in range(3):
        got = source.exposures(groupings, [mode])[mode]
        np.testing.assert_allclose(got, slow_sums(1.0 * mask, groupings, mode), atol=1e-12)
        ones = np.broadcast_to(complete[mode], got.shape)
        np.testing.assert_allclose(ones, slow_sums(np.ones((4, 6, 5)), groupings, mode), atol=1e-12)


def test_pooling_averages_over_tied_modes_and_counts_what_is_seen():
    rng = np.random.default_rng(0)
    tensor, mask = rng.standard_normal((4, 4)), rng.random((4, 4)) < 0.6
    source = DenseSource(tensor * mask, 1.0 * mask)
    pooled = source.pooled(((0, 1),))
    np.testing.assert_allclose(pooled.tensor, (tensor * mask + (tensor * mask).T) / 2)
    np.testing.assert_allclose(pooled.weights, (1.0 * mask + mask.T) / 2)
    assert pooled.squared_norm == source.squared_norm


@every_framework
@pytest.mark.parametrize("slab", [1, 2**20])
def test_the_bernoulli_likelihood_is_that_of_every_entry(make, slab, monkeypatch):
    monkeypatch.setattr(_dense, "SLAB_ENTRIES", slab)
    rng = np.random.default_rng(0)
    _, groupings = problem((4, 6, 5), (2, 3, 2))
    core = rng.random((2, 3, 2))
    mean = np.clip(np.einsum("abc,ia,jb,kc", core, *map(members, groupings)), 1e-6, 1 - 1e-6)
    ones = (rng.random(mean.shape) < 0.5).astype(float)
    mask = rng.random(mean.shape) < 0.8
    terms = ones * np.log(mean) + (1 - ones) * np.log(1 - mean)
    assert DenseSource(make(ones)).bernoulli(groupings, core) == pytest.approx(terms.sum())
    seen = DenseSource(make(ones * mask), make(1.0 * mask))
    assert seen.bernoulli(groupings, core) == pytest.approx(terms[mask].sum())


def test_filling_recovers_a_low_rank_tensor():
    rng = np.random.default_rng(0)
    tensor = np.einsum("i,j,k", *(1 + rng.random(12) for _ in range(3)))
    mask = rng.random(tensor.shape) < 0.7
    filled = DenseSource(tensor * mask, 1.0 * mask).filled([2, 2, 2])
    wrong = np.linalg.norm(filled.tensor - tensor)
    assert wrong < 0.1 * np.linalg.norm(tensor - tensor.mean())
    assert wrong < 0.06 * np.linalg.norm(tensor * mask - tensor)
    np.testing.assert_allclose(filled.tensor[mask], tensor[mask])


@every_framework
def test_directions_of_large_tensors_come_from_single_precision(make, monkeypatch):
    monkeypatch.setattr(_dense, "SINGLE_FROM", 0)
    rng = np.random.default_rng(0)
    tensor = 1e9 * np.einsum("ia,ja,ka", *(rng.standard_normal((d, 3)) for d in (20, 22, 24)))
    tensor += 1e9 * rng.standard_normal(tensor.shape)
    source = DenseSource(make(tensor))
    source.spectral_rows([3, 3, 3], [0, 1, 2], [0, 1, 2])
    for mode in range(3):
        unfolding = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
        exact = np.linalg.svd(unfolding)[0][:, :3]
        off = exact - to_numpy(source.vectors(mode, 3)) @ (
            to_numpy(source.vectors(mode, 3)).T @ exact
        )
        assert 1e-12 < np.abs(off).max() < 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e-30], ids="scale{:g}".format)
def test_directions_that_single_precision_blurs_are_found_in_double(scale, monkeypatch):
    monkeypatch.setattr(_dense, "SINGLE_FROM", 0)
    rng = np.random.default_rng(0)
    factors = [np.linalg.qr(rng.standard_normal((d, 2)))[0] for d in (20, 22, 24)]
    tensor = scale * np.einsum("a,ia,ja,ka", [1.0, 1e-3], *factors)
    source = DenseSource(tensor)
    source.spectral_rows([2, 2, 2], [0, 1, 2], [0, 1, 2])
    for mode, factor in enumerate(factors):
        off = factor - source.vectors(mode, 2) @ (source.vectors(mode, 2).T @ factor)
        assert np.abs(off).max() < 1e-8
