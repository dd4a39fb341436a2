import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.frameworks import every_framework, to_numpy
from tesseral._errors import DtypeError, ShapeError
from tesseral.core import fold, unfold

shapes = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def tensors_and_modes(draw):
    shape = draw(shapes)
    tensor = np.arange(np.prod(shape, dtype=int)).reshape(shape, order=draw(st.sampled_from("CF")))
    return tensor, draw(st.integers(-len(shape), len(shape) - 1))


@given(tensors_and_modes())
def test_fold_undoes_unfold(problem):
    tensor, mode = problem
    np.testing.assert_array_equal(fold(unfold(tensor, mode), mode, tensor.shape), tensor)


@given(tensors_and_modes())
def test_a_row_holds_the_entries_of_one_index_in_c_order(problem):
    tensor, mode = problem
    rows = [np.take(tensor, i, axis=mode).ravel() for i in range(tensor.shape[mode])]
    got = unfold(tensor, mode)
    assert got.shape[0] == len(rows)
    for row, expected in zip(got, rows, strict=True):
        np.testing.assert_array_equal(row, expected)


@every_framework
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_unfold_agrees_with_tensorly(make, mode):
    tensor = np.random.default_rng(0).standard_normal((2, 3, 4))
    np.testing.assert_array_equal(
        to_numpy(unfold(make(tensor), mode)), tensorly.unfold(tensor, mode)
    )


def test_gradients_pass_through_both_ways():
    tensor = torch.rand(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fold(unfold(x, 1) ** 2, 1, (2, 3, 2)), tensor)


@pytest.mark.parametrize("mode", [3, -4])
def test_a_mode_that_does_not_exist_is_refused(mode):
    with pytest.raises(ShapeError, match=rf"unfold: mode={mode} does not exist.*\(2, 3, 4\).*0 to"):
        unfold(np.ones((2, 3, 4)), mode)
    with pytest.raises(ShapeError, match=rf"fold: mode={mode} does not exist"):
        fold(np.ones((2, 12)), mode, (2, 3, 4))


def test_a_scalar_has_no_modes():
    with pytest.raises(ShapeError, match=r"shape \(\); it has 0 modes\.$"):
        unfold(np.ones(()), 0)


def test_a_mode_is_an_integer():
    with pytest.raises(TypeError, match="integer"):
        unfold(np.ones((2, 3)), 1.0)


def test_a_list_is_not_unfolded():
    with pytest.raises(DtypeError, match="unfold: needs arrays"):
        unfold([[1.0]], 0)


@pytest.mark.parametrize("shape", [(3, 8), (2, 12, 1), (24,)])
def test_a_matrix_of_another_shape_is_not_folded(shape):
    with pytest.raises(ShapeError, match=r"unfolds along mode 0 to \(2, 12\), got .* shape"):
        fold(np.ones(shape), 0, (2, 3, 4))
