from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core import CooTensor
from tesseral.core.coo import is_sparse
from tesseral.core.ties import symmetrize


def dense(shape=(4, 4, 3), seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) * (rng.random(shape) < 0.3)


def stored(array):
    coords = np.stack(np.nonzero(array))
    return CooTensor.from_entries(coords, array[tuple(coords)], array.shape)


def test_entries_come_back_and_repeated_ones_are_added():
    array = dense()
    np.testing.assert_array_equal(stored(array).to_dense(), array)
    twice = CooTensor.from_entries([[1, 0, 1], [2, 0, 2]], [1, 2, 4], (2, 3))
    assert len(twice.values) == 2
    np.testing.assert_array_equal(twice.to_dense(), [[2, 0, 0], [0, 0, 5]])


@pytest.mark.parametrize("kind", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
def test_sparse_matrices_of_scipy_are_taken(kind):
    array = dense((5, 4))
    assert is_sparse(kind(array))
    np.testing.assert_array_equal(CooTensor.from_sparse(kind(array)).to_dense(), array)


def test_arrays_of_the_library_sparse_are_taken_by_their_attributes():
    class Coo:
        coords, data, shape, fill_value = np.array([[0, 1], [1, 0]]), np.array([2, 3]), (2, 2), 0

    np.testing.assert_array_equal(CooTensor.from_sparse(Coo()).to_dense(), [[0, 2], [3, 0]])
    assert not is_sparse(np.ones(3))
    with pytest.raises(DtypeError, match=r"^here: needs a SciPy sparse matrix"):
        CooTensor.from_sparse(np.ones((2, 2)), where="here")


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("counts", [False, True])
def test_hyperedges_become_all_their_subsets_in_every_order(order, counts):
    edges = [[0, 1, 2], [3, 1], [2, 1, 0, 4], [4, 4, 4], [5]]
    expected = np.zeros((6,) * order)
    for edge in edges:
        for place in permutations(sorted(set(edge)), order):
            expected[place] += 1
    got = CooTensor.from_hyperedges(edges, order=order, n_nodes=6, counts=counts)
    np.testing.assert_array_equal(got.to_dense(), expected if counts else expected > 0)
    assert got.find_ties() == (tuple(range(order)),)


def test_an_array_of_edges_is_read_as_a_list_of_them():
    edges = np.array([[2, 0, 1], [3, 3, 1], [4, 2, 3], [1, 2, 0]])
    for order in (2, 3):
        listed = CooTensor.from_hyperedges(edges.tolist(), order=order, counts=True)
        at_once = CooTensor.from_hyperedges(edges, order=order, counts=True)
        np.testing.assert_array_equal(at_once.to_dense(), listed.to_dense())


def test_symmetry_is_found_and_made_as_in_dense_tensors():
    array, ties = dense(), ((0, 1), (2,))
    tensor = stored(array)
    assert tensor.find_ties() == ((0,), (1,), (2,))
    made = tensor.symmetrized(ties)
    np.testing.assert_allclose(made.to_dense(), symmetrize(array, ties))
    assert made.find_ties() == ties
    assert made.symmetrized(ties) is made
    assert tensor.symmetrized(((0,), (1,), (2,))) is tensor


@pytest.mark.parametrize(
    ("coords", "values", "error", "words"),
    [
        ([[0], [3]], [1.0], ParameterError, r"outside the shape \(2, 3\)"),
        ([[0]], [1.0], ShapeError, r"needs coordinates of shape \(2, n\)"),
        ([[0.0], [1.0]], [1.0], DtypeError, "needs integer coordinates"),
        ([[0], [1]], [1j], DtypeError, "real values"),
        ([[0], [1]], [np.inf], ParameterError, "contain infinity"),
    ],
)
def test_entries_that_do_not_fit_are_refused(coords, values, error, words):
    with pytest.raises(error, match=words):
        CooTensor.from_entries(coords, values, (2, 3))


def test_a_stored_nan_is_a_missing_entry_that_may_be_symmetric():
    array = np.zeros((3, 3))
    array[[0, 1, 2], [1, 0, 2]] = np.nan
    tensor = stored(array)
    assert np.isnan(tensor.values).all()
    np.testing.assert_array_equal(tensor.to_dense(), array)
    assert tensor.find_ties() == ((0, 1),)


def test_what_is_not_stored_must_be_zero():
    given = SimpleNamespace(
        coords=np.array([[0], [1]]), data=np.ones(1), shape=(2, 2), fill_value=1.0
    )
    with pytest.raises(ParameterError, match=r"must be zero, got fill_value=1\.0"):
        CooTensor.from_sparse(given)


def test_hyperedges_that_make_nothing_are_refused():
    with pytest.raises(ParameterError, match=r"no edge has the 3 nodes"):
        CooTensor.from_hyperedges([[0, 1], [2]])
    with pytest.raises(ParameterError, match=r"nodes must be integers from 0"):
        CooTensor.from_hyperedges([["a", "b", "c"]])
    with pytest.raises(ShapeError, match=r"too many entries to number"):
        CooTensor.from_entries(np.zeros((4, 1), int), [1.0], (10**5,) * 4)
