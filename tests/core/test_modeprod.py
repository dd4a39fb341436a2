import itertools

import numpy as np
import pytest
import tensorly.tenalg
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from support.budget import assert_within_budget
from support.frameworks import every_framework, to_numpy
from tesseral._errors import DtypeError, ShapeError
from tesseral.core import contraction_order, fold, mode_product, multi_mode_product, unfold

sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


def draw_problem(sizes, dtype=np.float64, order="C"):
    """Return a tensor and one (m_k, d_k) matrix a mode, for ``sizes`` of pairs (d_k, m_k)."""
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal([d for d, _ in sizes])
    matrices = [rng.standard_normal((m, d)) for d, m in sizes]
    return (
        np.asarray(tensor, dtype=dtype, order=order),
        [np.asarray(matrix, dtype=dtype, order=order) for matrix in matrices],
    )


def by_einsum(tensor, matrices):
    """Apply all matrices at once, without an order of contraction."""
    old, new = "abcd"[: tensor.ndim], "wxyz"[: tensor.ndim]
    pairs = [f"{n}{o}" for n, o in zip(new, old, strict=True)]
    return np.einsum(f"{old},{','.join(pairs)}->{new}", tensor, *matrices)


@given(sizes, st.data())
def test_a_mode_product_multiplies_the_unfolding(sizes, data):
    tensor, matrices = draw_problem(sizes, order=data.draw(st.sampled_from("CF")))
    mode = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    got = mode_product(tensor, matrices[mode], mode)
    np.testing.assert_allclose(unfold(got, mode), matrices[mode] @ unfold(tensor, mode), atol=1e-12)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=4), st.data())
def test_products_along_two_modes_commute(sizes, data):
    tensor, matrices = draw_problem(sizes)
    i, j = data.draw(st.permutations(range(len(sizes))))[:2]
    np.testing.assert_allclose(
        mode_product(mode_product(tensor, matrices[i], i), matrices[j], j),
        mode_product(mode_product(tensor, matrices[j], j), matrices[i], i),
        atol=1e-12,
    )


@given(sizes)
def test_the_order_of_contraction_never_changes_the_result(sizes):
    tensor, matrices = draw_problem(sizes)
    expected = by_einsum(tensor, matrices)
    np.testing.assert_allclose(multi_mode_product(tensor, matrices), expected, atol=1e-11)
    for order in itertools.permutations(range(len(sizes))):
        got = tensor
        for mode in order:
            got = mode_product(got, matrices[mode], mode)
        np.testing.assert_allclose(got, expected, atol=1e-11)


def multiplications(shape, new_sizes, order):
    current, cost = list(shape), 0
    for mode in order:
        cost += int(np.prod(current, dtype=object)) * new_sizes[mode]
        current[mode] = new_sizes[mode]
    return cost


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.one_of(st.integers(0, 9), st.none())),
        min_size=1,
        max_size=5,
    )
)
@example([(10, 20), (2, 3)])  # the ratio of sizes would choose the other order
@example([(5, 1), (1, 0)])  # nothing is cheaper than a tensor made empty
def test_the_chosen_order_costs_least_of_all(sizes):
    shape, new_sizes = zip(*sizes, strict=True)
    order = contraction_order(shape, new_sizes)
    modes = [mode for mode, size in enumerate(new_sizes) if size is not None]
    assert sorted(order) == modes
    costs = [multiplications(shape, new_sizes, p) for p in itertools.permutations(modes)]
    assert multiplications(shape, new_sizes, order) == min(costs)


def test_a_product_follows_the_chosen_order(monkeypatch):
    from tesseral.core import modeprod

    seen = []
    product = modeprod._product
    monkeypatch.setattr(modeprod, "_product", lambda *args: seen.append(args[-1]) or product(*args))
    tensor, matrices = draw_problem([(2, 9), (9, 2), (4, 4), (5, 1)])
    multi_mode_product(tensor, matrices)
    assert tuple(seen) == contraction_order((2, 9, 4, 5), (9, 2, 4, 1)) == (3, 1, 2, 0)


@given(sizes, st.data())
def test_skipping_a_mode_equals_leaving_its_matrix_out(sizes, data):
    tensor, matrices = draw_problem(sizes)
    mode = data.draw(st.integers(-len(sizes), len(sizes) - 1))
    without = list(matrices)
    without[mode] = None
    np.testing.assert_array_equal(
        multi_mode_product(tensor, matrices, skip=mode), multi_mode_product(tensor, without)
    )


@given(sizes)
def test_transposing_equals_giving_transposes(sizes):
    tensor, matrices = draw_problem(sizes)
    np.testing.assert_allclose(
        multi_mode_product(tensor, [matrix.T.copy() for matrix in matrices], transpose=True),
        multi_mode_product(tensor, matrices),
        atol=1e-12,
    )


@every_framework
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_framework_keeps_the_data_type_and_stays_within_budget(make, dtype, order):
    sizes = [(5, 3), (4, 6), (3, 2)]
    oracle = by_einsum(*draw_problem(sizes, np.longdouble))
    tensor, matrices = draw_problem(sizes, dtype, order)
    got = to_numpy(multi_mode_product(make(tensor), [make(matrix) for matrix in matrices]))
    assert got.dtype == dtype
    peer = by_einsum(tensor, matrices)
    assert_within_budget(got, oracle, peer, floor=float(4 * np.finfo(dtype).eps))


def test_products_agree_with_tensorly():
    tensor, matrices = draw_problem([(5, 3), (4, 6), (3, 2)])
    expected = tensorly.tenalg.multi_mode_dot(tensor, matrices)
    np.testing.assert_allclose(multi_mode_product(tensor, matrices), expected, atol=1e-12)


def test_a_fold_of_the_multiplied_unfolding_is_the_mode_product():
    tensor, matrices = draw_problem([(2, 5), (3, 1), (4, 2)])
    unfolded = matrices[1] @ unfold(tensor, 1)
    np.testing.assert_allclose(
        mode_product(tensor, matrices[1], 1), fold(unfolded, 1, (2, 1, 4)), atol=1e-13
    )


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_reach_the_tensor_and_every_matrix(transpose):
    tensor, matrices = draw_problem([(2, 3), (3, 3), (2, 2)])
    if transpose:
        matrices = [matrix.T for matrix in matrices]
    leaves = [torch.tensor(array, requires_grad=True) for array in (tensor, *matrices)]
    assert torch.autograd.gradcheck(
        lambda x, *m: multi_mode_product(x, m, transpose=transpose), leaves
    )


def test_an_untouched_tensor_comes_back_itself():
    tensor = np.ones((2, 3))
    assert multi_mode_product(tensor, [None, None]) is tensor


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty_tensors_have_products(shape):
    matrices = [np.ones((4, size)) for size in shape]
    np.testing.assert_array_equal(multi_mode_product(np.ones(shape), matrices), np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("matrix", "transpose", "message"),
    [
        (np.ones((3, 2)), False, r"mode 1 has size 3 .* shape \(m, 3\), got shape \(3, 2\)"),
        (np.ones((2, 3)), True, r"mode 1 has size 3 .* shape \(3, m\), got shape \(2, 3\)"),
        (np.ones(3), False, r"mode 1 .* got shape \(3,\)"),
    ],
)
def test_a_matrix_that_does_not_fit_is_refused(matrix, transpose, message):
    with pytest.raises(ShapeError, match="^mode_product: " + message):
        mode_product(np.ones((2, 3)), matrix, 1, transpose=transpose)
    with pytest.raises(ShapeError, match="^multi_mode_product: " + message):
        multi_mode_product(np.ones((2, 3)), [None, matrix], transpose=transpose)


def test_each_mode_needs_a_matrix():
    with pytest.raises(ShapeError, match=r"shape \(2, 3\) needs 2 matrices.*got 1"):
        multi_mode_product(np.ones((2, 3)), [np.ones((1, 2))])


def test_the_mode_to_skip_must_exist():
    with pytest.raises(ShapeError, match="mode=2 does not exist"):
        multi_mode_product(np.ones((2, 3)), [None, None], skip=2)


def test_a_list_is_not_a_tensor():
    with pytest.raises(DtypeError, match="mode_product: needs arrays"):
        mode_product([[1.0]], np.ones((1, 1)), 0)
