import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.budget import assert_within_budget
from support.frameworks import every_framework, to_numpy
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core import (
    block_means,
    block_sums,
    blocks,
    expand_blocks,
    membership_matrix,
    multi_mode_product,
)


@st.composite
def labelled_tensors(draw):
    """Draw a tensor, labels (None for some modes) and numbers of clusters, some empty."""
    order = draw(st.integers(1, 4))
    sizes = [draw(st.integers(1, 5)) for _ in range(order)]
    counts = [draw(st.integers(1, 6)) for _ in range(order)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = [
        None if draw(st.booleans()) else rng.integers(r, size=d)
        for d, r in zip(sizes, counts, strict=True)
    ]
    return rng.standard_normal(sizes), labels, counts


def memberships(labels, counts):
    return [None if z is None else np.eye(r)[z] for z, r in zip(labels, counts, strict=True)]


@pytest.fixture(params=["matrix products", "gathered slices"], autouse=True, scope="module")
def path(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "SEGMENT_FROM", 10**9 if request.param == "matrix products" else 0)
        yield


@given(labelled_tensors())
def test_block_sums_are_dense_membership_products(problem):
    tensor, labels, counts = problem
    np.testing.assert_allclose(
        block_sums(tensor, labels, counts),
        multi_mode_product(tensor, memberships(labels, counts), transpose=True),
        atol=1e-12,
    )


@given(labelled_tensors(), st.booleans())
def test_block_means_are_normalised_membership_products(problem, weighted):
    tensor, labels, counts = problem
    weights = np.random.default_rng(0).integers(0, 3, tensor.shape).astype(float)
    if not weighted:
        weights[:] = 1
    ones = memberships(labels, counts)
    mass = multi_mode_product(weights, ones, transpose=True)
    sums = multi_mode_product(weights * tensor, ones, transpose=True)
    expected = np.divide(sums, mass, out=np.full_like(sums, -9.0), where=mass > 0)
    got = block_means(tensor, labels, counts, weights=weights if weighted else None, empty=-9.0)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@given(labelled_tensors(), st.randoms(use_true_random=False))
def test_permuting_indices_with_their_labels_changes_nothing(problem, random):
    tensor, labels, counts = problem
    moved, moved_labels = tensor, list(labels)
    for mode, z in enumerate(labels):
        if z is not None:
            order = random.sample(range(len(z)), len(z))
            moved, moved_labels[mode] = moved.take(order, axis=mode), z[order]
    np.testing.assert_allclose(
        block_means(moved, moved_labels, counts, empty=0),
        block_means(tensor, labels, counts, empty=0),
        atol=1e-12,
    )


@given(labelled_tensors(), st.randoms(use_true_random=False))
def test_renaming_clusters_permutes_the_blocks(problem, random):
    tensor, labels, counts = problem
    names = [
        np.arange(tensor.shape[mode])
        if z is None
        else np.array(random.sample(range(counts[mode]), counts[mode]))
        for mode, z in enumerate(labels)
    ]
    renamed = [None if z is None else name[z] for z, name in zip(labels, names, strict=True)]
    np.testing.assert_allclose(
        block_sums(tensor, renamed, counts)[np.ix_(*names)],
        block_sums(tensor, labels, counts),
        atol=1e-12,
    )


@given(labelled_tensors())
def test_averaging_undoes_expanding_where_no_block_is_empty(problem):
    tensor, labels, counts = problem
    core = np.random.default_rng(0).standard_normal(
        [d if z is None else r for d, z, r in zip(tensor.shape, labels, counts, strict=True)]
    )
    back = block_means(expand_blocks(core, labels), labels, counts, empty=np.nan)
    np.testing.assert_allclose(back, np.where(np.isnan(back), np.nan, core), atol=1e-12)
    np.testing.assert_allclose(
        expand_blocks(core, labels), multi_mode_product(core, memberships(labels, counts))
    )


@every_framework
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_framework_stays_within_budget(make, dtype, order):
    rng = np.random.default_rng(0)
    tensor = np.asarray(rng.standard_normal((8, 9, 10)), dtype=dtype, order=order)
    labels = [np.arange(8) % 3, None, np.arange(10) % 2]
    got = block_means(make(tensor), [None if z is None else make(z) for z in labels])
    assert to_numpy(got).dtype == dtype

    def plain(data):
        return np.stack(
            [
                np.stack(
                    [data[labels[0] == a][:, :, labels[2] == c].mean((0, 2)) for c in range(2)], 1
                )
                for a in range(3)
            ]
        )

    oracle = plain(tensor.astype(np.longdouble))
    floor = float(np.finfo(dtype).eps)
    assert_within_budget(to_numpy(got), oracle, plain(tensor), floor=floor)
    expanded = expand_blocks(got, [labels[0], None, labels[2]])
    assert to_numpy(expanded).shape == (8, 9, 10)


def test_labels_may_come_from_another_framework_than_the_tensor():
    tensor = torch.ones(3, 2, dtype=torch.float64)
    got = block_sums(tensor, [np.array([0, 0, 1]), None])
    np.testing.assert_array_equal(got.numpy(), [[2, 2], [1, 1]])


def test_gradients_pass_through_sums_means_and_expansion():
    rng = np.random.default_rng(0)
    tensor, weights = (
        torch.tensor(rng.uniform(0.5, 1.5, (4, 3)), requires_grad=True) for _ in range(2)
    )
    labels = [np.array([0, 2, 0, 2]), np.array([1, 0, 1])]

    def loss(tensor, weights):
        means = block_means(tensor, labels, [3, 2], weights=weights, empty=0.0)
        return expand_blocks(means, labels) * block_means(tensor, labels, [3, 2], empty=1.0).sum()

    assert torch.autograd.gradcheck(loss, (tensor, weights))


def test_an_empty_block_is_an_error_unless_it_gets_a_value():
    labels = [np.array([0, 2]), np.array([0, 0])]
    with pytest.raises(ParameterError, match=r"4 of 6 blocks are empty, the first at \(0, 1\)"):
        block_means(np.ones((2, 2)), labels, [3, 2])
    np.testing.assert_array_equal(
        block_means(np.ones((2, 2)), labels, [3, 2], empty=7.0), [[1, 7], [7, 7], [1, 7]]
    )


def test_a_block_without_weight_is_empty():
    labels = [np.array([0, 1]), None]
    weights = np.array([[1.0, 0.0], [1.0, 1.0]])
    with pytest.raises(ParameterError, match=r"1 of 4 blocks are empty, the first at \(0, 1\)"):
        block_means(np.ones((2, 2)), labels, weights=weights)


def test_a_membership_matrix_has_a_one_at_each_label():
    got = membership_matrix(np.array([2, 0]), 3, torch.empty(0))
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), [[0, 0, 1], [1, 0, 0]])


@pytest.mark.parametrize("function", [block_sums, block_means, expand_blocks])
@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([None], ShapeError, r"shape \(2, 3\) needs 2 label arrays.*got 1"),
        ([None, [0, 1, 0]], DtypeError, "needs arrays.*got list"),
        ([None, np.zeros(3)], DtypeError, "labels of mode 1 must be integers, got float64"),
        ([None, np.zeros((3, 1), int)], ShapeError, r"one dimension, got shape \(3, 1\)"),
        ([None, np.array([0, -1, 1])], ParameterError, "mode 1 must be at least 0.*got -1 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(function, labels, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
        function(np.ones((2, 3)), labels)


def test_labels_must_be_as_many_as_indices_and_below_the_number_of_clusters():
    with pytest.raises(ShapeError, match=r"mode 1 .* needs 3 labels, got 2"):
        block_sums(np.ones((2, 3)), [None, np.array([0, 1])])
    with pytest.raises(ParameterError, match="at least 0 and below 2, got 0 to 2"):
        block_sums(np.ones((2, 3)), [None, np.array([0, 1, 2])], [None, 2])
    with pytest.raises(ParameterError, match="at least 0 and below 3, got 0 to 3"):
        expand_blocks(np.ones((2, 3)), [None, np.array([0, 3])])
    with pytest.raises(ShapeError, match=r"n_clusters needs 2 entries.*got 1"):
        block_sums(np.ones((2, 3)), [None, np.array([0, 1, 2])], [3])


def test_tensors_and_weights_that_do_not_fit_are_refused():
    labels = [None, np.array([0, 1, 0])]
    for function in (block_sums, block_means):
        with pytest.raises(DtypeError, match=f"{function.__name__}: needs a real floating-point"):
            function(np.ones((2, 3), dtype=int), labels)
    with pytest.raises(ShapeError, match=r"weights need the shape \(2, 3\).*got \(3,\)"):
        block_means(np.ones((2, 3)), labels, weights=np.ones(3))
    with pytest.raises(DtypeError, match=r"block_means: needs a real floating-point.*bool"):
        block_means(np.ones((2, 3)), labels, weights=np.ones((2, 3), dtype=bool))
