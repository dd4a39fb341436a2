import numpy as np
import pytest

from support.frameworks import every_framework
from tesseral.cluster._bernoulli import climb, scores
from tesseral.cluster._blocks import BlockFit
from tesseral.cluster._data import read
from tesseral.cluster._source import Grouping
from tesseral.core import CooTensor, multi_mode_product

SHAPE, SIZES = (9, 8, 7), (2, 3, 2)


def bits(missing=0.0, seed=0, share=3.0):
    """Return entries 0 and 1, of which some are NaN, and a block model near them."""
    rng = np.random.default_rng(seed)
    groupings = [
        Grouping(labels=np.arange(d) % r, size=r, weights=0.5 + rng.random(d))
        for d, r in zip(SHAPE, SIZES, strict=True)
    ]
    core = 0.02 + 0.15 * rng.random(SIZES)
    array = (rng.random(SHAPE) < share * mean_of(groupings, core)).astype(float)
    array[rng.random(SHAPE) < missing] = np.nan
    return array, BlockFit(groupings=groupings, core=core)


def mean_of(groupings, core):
    return multi_mode_product(core, [g.matrix(np.empty(0)) for g in groupings])


def stored(array):
    coords = np.stack(np.nonzero(array))
    return CooTensor.from_entries(coords, array[tuple(coords)], array.shape)


def chunked(array):
    da = pytest.importorskip("dask.array")
    return da.from_array(array, chunks=(4, 8, 3))


def likelihood(array, mean):
    terms = np.where(array == 1, np.log(mean), np.log1p(-mean))
    return np.where(np.isnan(array), 0.0, terms)


@every_framework
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_slopes_are_derivatives_of_the_likelihood(make, missing):
    array, fit = bits(missing)
    slopes, information = read("test", make(array)).source.bernoulli_slopes(
        fit.groupings, fit.core, range(3)
    )
    mean, step = mean_of(fit.groupings, fit.core), 1e-5
    rise = likelihood(array, mean * np.exp(step)) - likelihood(array, mean * np.exp(-step))
    odds = np.where(np.isnan(array), 0.0, mean / (1 - mean))
    for mode in range(3):
        axes = tuple(k for k in range(3) if k != mode)
        np.testing.assert_allclose(
            slopes[mode].sum(axis=1), rise.sum(axis=axes) / (2 * step), atol=1e-6
        )
        np.testing.assert_allclose(information[mode].sum(axis=1), odds.sum(axis=axes))


@pytest.mark.parametrize("kind", [stored, chunked])
@pytest.mark.parametrize("missing", [0.0, 0.2])
def test_all_answers_are_those_of_the_dense_tensor(kind, missing):
    array, fit = bits(missing)
    dense, other = read("test", array).source, read("test", kind(array)).source
    given = fit.groupings, fit.core
    for expected, got in zip(
        dense.bernoulli_slopes(*given, range(3)), other.bernoulli_slopes(*given, range(3)),
        strict=True,
    ):  # fmt: skip
        for mode in range(3):
            np.testing.assert_allclose(got[mode], expected[mode], atol=1e-10)
    for mode in range(3):
        degrees = 0.5 + np.random.default_rng(0).random((SHAPE[mode], SIZES[mode]))
        for expected, got in zip(
            dense.bernoulli_trials(*given, mode, degrees),
            other.bernoulli_trials(*given, mode, degrees),
            strict=True,
        ):
            np.testing.assert_allclose(got, expected, atol=1e-9)


@every_framework
def test_trials_move_one_node_and_leave_the_rest(make):
    array, fit = bits(0.1)
    degrees = 0.5 + np.random.default_rng(0).random((SHAPE[1], SIZES[1]))
    source = read("test", make(array)).source
    found, slope, _ = source.bernoulli_trials(fit.groupings, fit.core, 1, degrees)
    for node, a in np.ndindex(degrees.shape):
        for step, expected in ((0.0, found), (1e-5, found + 1e-5 * slope)):
            labels, weights = fit.groupings[1].labels.copy(), fit.groupings[1].weights.copy()
            labels[node], weights[node] = a, degrees[node, a] * np.exp(step)
            moved = list(fit.groupings)
            moved[1] = Grouping(labels=labels, size=SIZES[1], weights=weights)
            terms = likelihood(array, mean_of(moved, fit.core))[:, node]
            assert terms.sum() == pytest.approx(expected[node, a], abs=1e-7)


@pytest.mark.parametrize("kind", [np.asarray, stored])
def test_the_climb_ends_where_no_factor_has_a_slope(kind):
    array, start = bits(share=1.5)
    source = read("test", kind(array)).source
    fit = climb(source, [0, 1, 2], start)
    assert source.bernoulli(fit.groupings, fit.core) > source.bernoulli(start.groupings, start.core)
    slopes, information = source.bernoulli_slopes(fit.groupings, fit.core, range(3))
    for mode in range(3):
        slope, scale = slopes[mode].sum(axis=1), np.sqrt(information[mode].sum(axis=1))
        some = array.sum(axis=tuple(k for k in range(3) if k != mode)) > 0
        assert (abs(slope) < 0.2 * scale)[some].all()
        means = np.bincount(fit.groupings[mode].labels, fit.degrees[mode])
        np.testing.assert_allclose(means, np.bincount(fit.groupings[mode].labels))


def test_a_node_scores_best_with_the_degree_of_its_own():
    array, start = bits(share=1.5)
    source = read("test", array).source
    fit = climb(source, [0, 1, 2], start)
    found = scores(source, fit, 0)
    own = found[np.arange(SHAPE[0]), fit.groupings[0].labels]
    rows = likelihood(array, mean_of(fit.groupings, fit.core)).sum(axis=(1, 2))
    assert (own >= rows - 1e-9).all()
    np.testing.assert_allclose(own, rows, atol=0.05)
