import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesseral._errors import ParameterError, ShapeError
from tesseral.datasets import make_block_tensor


def outer_mean(planted):
    """The model, written entry by entry."""
    mean = np.empty(planted.mean.shape)
    for index in np.ndindex(mean.shape):
        blocks = tuple(z[i] for z, i in zip(planted.labels, index, strict=True))
        theta = [t[i] for t, i in zip(planted.degrees, index, strict=True)]
        mean[index] = planted.core[blocks] * np.prod(theta)
    return mean


@pytest.mark.parametrize(
    ("shape", "n_clusters"), [((6, 7), 2), ((6, 7, 8), (2, 3, 4)), ((4, 5, 4, 3), 2)]
)
@pytest.mark.parametrize("degrees", ["half-normal", "pareto", "equal"])
def test_the_mean_is_the_block_times_the_degrees(shape, n_clusters, degrees):
    planted = make_block_tensor(shape, n_clusters, degrees=degrees, random_state=1)
    np.testing.assert_allclose(planted.mean, outer_mean(planted), rtol=1e-12)


@given(size=st.integers(4, 40), n_clusters=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_clusters_are_balanced_and_degrees_average_one_in_each(size, n_clusters, seed):
    planted = make_block_tensor((size, size), n_clusters, random_state=seed)
    for labels, degrees in zip(planted.labels, planted.degrees, strict=True):
        sizes = np.bincount(labels, minlength=n_clusters)
        assert sizes.max() - sizes.min() <= 1
        np.testing.assert_allclose(np.bincount(labels, weights=degrees) / sizes, 1.0)
        assert (degrees > 0).all()


def test_the_default_core_is_that_of_the_published_simulation():
    # 30 nodes, gamma = -1.1; the values of a stored case of the R package
    contrast = 1 + 100 * 30 ** (-1.1 / 2)
    core = make_block_tensor((9, 9, 9), 3, contrast=contrast, random_state=0).core
    assert core[1, 1, 1] == pytest.approx(0.49272775)
    assert core[1, 1, 0] == pytest.approx(0.03004031)


@pytest.mark.parametrize("n_clusters", [(2, 3, 4), (1, 1, 1), (2, 2, 3), (4, 3, 4), (3, 3, 3)])
def test_the_default_core_tells_the_clusters_of_every_mode_apart(n_clusters):
    core = make_block_tensor((5, 5, 5), n_clusters, random_state=0).core
    for mode, n in enumerate(n_clusters):
        rows = np.moveaxis(core, mode, 0).reshape(n, -1)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = rows @ rows.T - np.eye(n)
        assert cosines.max() < 0.9


def test_the_largest_slice_has_the_norm_asked_for():
    core = make_block_tensor((5, 5, 5), (2, 3, 4), slice_norm=2.0, random_state=0).core
    norms = [np.sqrt((core**2).sum(axis=axes)).max() for axes in ((1, 2), (0, 2), (0, 1))]
    assert max(norms) == pytest.approx(2.0)


def test_tied_modes_share_labels_and_degrees():
    planted = make_block_tensor((6, 8, 6), 2, symmetric=[(0, 2)], random_state=0)
    np.testing.assert_array_equal(planted.labels[0], planted.labels[2])
    np.testing.assert_array_equal(planted.degrees[0], planted.degrees[2])
    np.testing.assert_allclose(planted.mean, planted.mean.transpose(2, 1, 0))
    assert not np.array_equal(planted.tensor, planted.tensor.transpose(2, 1, 0))


@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
def test_symmetric_noise_makes_the_data_exactly_symmetric(family):
    planted = make_block_tensor(
        (9, 9, 9), 3, symmetric=True, symmetric_noise=True, family=family, random_state=0
    )
    for axes in [(0, 2, 1), (1, 0, 2), (2, 0, 1)]:
        np.testing.assert_array_equal(planted.tensor, planted.tensor.transpose(axes))


def test_symmetric_noise_leaves_untied_modes_alone():
    planted = make_block_tensor(
        (5, 5, 5), 2, symmetric=[(0, 1)], symmetric_noise=True, random_state=0
    )
    np.testing.assert_array_equal(planted.tensor, planted.tensor.transpose(1, 0, 2))
    assert not np.array_equal(planted.tensor, planted.tensor.transpose(0, 2, 1))


@pytest.mark.parametrize(
    ("family", "variance"),
    [
        ("normal", lambda mean: np.full_like(mean, 0.75**2)),
        ("binomial", lambda mean: mean * (1 - mean)),
        ("poisson", lambda mean: mean),
    ],
)
def test_observations_scatter_around_the_mean_as_the_family_says(family, variance):
    planted = make_block_tensor((60, 60, 60), 3, family=family, random_state=0)
    residual = planted.tensor - planted.mean
    expected = variance(planted.mean).sum()
    # five standard errors of the sum, and of the sum of squares for light tails
    assert abs(residual.sum()) < 5 * np.sqrt(expected)
    assert (residual**2).sum() == pytest.approx(expected, rel=0.05)


def test_binomial_means_are_cut_at_one():
    planted = make_block_tensor(
        (40, 40, 40), 2, family="binomial", degrees="pareto", slice_norm=0.9, random_state=0
    )
    assert planted.mean.max() == 1.0
    assert planted.tensor.dtype == np.uint8
    assert set(np.unique(planted.tensor)) == {0, 1}


def test_without_noise_the_tensor_is_its_mean():
    planted = make_block_tensor((5, 6, 7), 2, noise=0.0, random_state=0)
    np.testing.assert_array_equal(planted.tensor, planted.mean)


def test_a_core_of_ones_own_is_used():
    core = np.array([[2.0, -1.0], [-1.0, 3.0]])
    planted = make_block_tensor((5, 5), 2, core=core, symmetric=True, random_state=0)
    np.testing.assert_array_equal(planted.core, core)


def test_a_seed_gives_the_same_tensor_every_time():
    draws = [make_block_tensor((6, 6, 6), 2, random_state=seed).tensor for seed in (3, 3, 4)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ParameterError, "shape must be a sequence of at least two", {"shape": (5,)}),
        (ParameterError, "shape must be a sequence of at least two", {"shape": (5, 0, 5)}),
        (ParameterError, "n_clusters must be an integer at least 1", {"n_clusters": 0}),
        (ParameterError, "n_clusters must be .* of length 3", {"n_clusters": (2, 2)}),
        (ShapeError, "asks for more clusters than", {"n_clusters": 6}),
        (ShapeError, r"modes \(0, 1, 2\) are tied and need equal sizes", {"shape": (4, 5, 5)}),
        (ShapeError, "are tied and need equal n_clusters", {"n_clusters": (2, 2, 3)}),
        (ParameterError, "symmetric must be", {"symmetric": [(0, 3)]}),
        (ParameterError, "symmetric names a mode twice", {"symmetric": [(0, 1), (1, 2)]}),
        (ParameterError, "symmetric_noise must be a boolean", {"symmetric_noise": 1}),
        (ParameterError, "family must be 'normal' or", {"family": "gamma"}),
        (ParameterError, "degrees must be 'half-normal' or", {"degrees": "none"}),
        (ParameterError, "pareto_shape must be a finite number above 1", {"pareto_shape": 1.0}),
        (ParameterError, "noise must be a finite number at least 0", {"noise": -1.0}),
        (ParameterError, "contrast must be a finite number at least 1", {"contrast": 0.5}),
        (ParameterError, "slice_norm must be a finite number", {"slice_norm": float("nan")}),
        (ParameterError, "random_state must be a seed", {"random_state": "x"}),
        (ShapeError, r"core must have shape \(2, 2, 2\)", {"core": np.ones((2, 2))}),
        (ParameterError, "core must be finite", {"core": np.full((2, 2, 2), np.nan)}),
        (
            ParameterError,
            "core is not symmetric in the tied modes",
            {"core": np.arange(8.0).reshape(2, 2, 2)},
        ),
        (
            ParameterError,
            "core must be non-negative, it runs from -1 to -1",
            {"core": -np.ones((2, 2, 2)), "family": "poisson"},
        ),
        (
            ParameterError,
            "core must be between 0 and 1",
            {"slice_norm": 3.0, "family": "binomial"},
        ),
        (
            ParameterError,
            "cannot tell apart 5 clusters",
            {"n_clusters": (2, 2, 5), "symmetric": False},
        ),
    ],
)
def test_what_does_not_fit_is_refused(error, message, change):
    arguments = {"shape": (5, 5, 5), "n_clusters": 2, "symmetric": True, "random_state": 0}
    with pytest.raises(error, match=f"make_block_tensor: .*{message}"):
        make_block_tensor(**(arguments | change))


def test_clusters_may_be_of_random_size_and_none_is_empty():
    sizes = set()
    for seed in range(20):
        drawn = make_block_tensor((9, 12), (4, 4), balanced=False, random_state=seed)
        counts = [np.bincount(z, minlength=4) for z in drawn.labels]
        assert min(c.min() for c in counts) >= 1
        sizes.add(tuple(counts[1]))
        for z, theta in zip(drawn.labels, drawn.degrees, strict=True):
            np.testing.assert_allclose([theta[z == a].mean() for a in range(4)], 1)
    assert len(sizes) > 10
