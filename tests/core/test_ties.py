from itertools import permutations

import numpy as np
import pytest

from support.frameworks import every_framework, to_numpy
from tesseral._errors import ParameterError, ShapeError
from tesseral.core import ties
from tesseral.core.ties import check_tied, find_ties, per_mode, reorderings, symmetrize, tie_modes


def tensor_of(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.fixture(params=[65536, 27], autouse=True)
def tile_entries(request, monkeypatch):
    monkeypatch.setattr(ties, "TILE_ENTRIES", request.param)


def test_modes_are_tied_all_none_or_as_named():
    assert tie_modes("here", True, 3) == ((0, 1, 2),)
    assert tie_modes("here", False, 2) == ((0,), (1,))
    assert tie_modes("here", [(2, 0)], 4) == ((1,), (2, 0), (3,))
    with pytest.raises(ParameterError, match=r"^here: symmetric names a mode twice"):
        tie_modes("here", [(0, 1), (1, 2)], 3)


def test_tied_modes_need_equal_values():
    check_tied("here", "sizes", [3, 3, 2], ((0, 1), (2,)))
    with pytest.raises(ShapeError, match=r"^here: modes \(0, 1\) are tied and need equal sizes"):
        check_tied("here", "sizes", [3, 2], ((0, 1),))


def test_one_value_counts_for_all_modes():
    assert per_mode("here", "rank", 2, 3) == [2, 2, 2]
    assert per_mode("here", "rank", (2, 1), 2) == [2, 1]


@every_framework
def test_symmetrizing_a_whole_tensor_is_the_mean_of_its_transposes(make):
    tensor = tensor_of(19, 19, 19)
    oracle = np.mean([tensor.transpose(axes) for axes in permutations(range(3))], axis=0)
    got = to_numpy(symmetrize(make(tensor), ((0, 1, 2),)))
    np.testing.assert_allclose(got, oracle, atol=1e-14)


def test_symmetrizing_some_modes_leaves_the_others():
    tensor = tensor_of(11, 4, 11, 11)
    axes_of = [(0, 1, 2, 3), (3, 1, 2, 0)]
    oracle = np.mean([tensor.transpose(axes) for axes in axes_of], axis=0)
    np.testing.assert_allclose(symmetrize(tensor, ((0, 3), (1,), (2,))), oracle, atol=1e-14)
    np.testing.assert_array_equal(symmetrize(tensor, tie_modes("here", False, 4)), tensor)


def test_two_groups_are_symmetrized_independently():
    tensor = tensor_of(10, 9, 9, 10)
    groups = ((0, 3), (1, 2))
    assert len(reorderings(groups)) == 4
    oracle = np.mean([tensor.transpose(axes) for axes in reorderings(groups)], axis=0)
    np.testing.assert_allclose(symmetrize(tensor, groups), oracle, atol=1e-14)


@every_framework
def test_exact_symmetry_is_found_and_nothing_less(make):
    tensor = symmetrize(tensor_of(6, 6, 6), ((0, 1, 2),)).round(6)
    assert find_ties(make(tensor)) == ((0, 1, 2),)
    partly = np.stack([tensor, 2 * tensor], axis=1)
    assert find_ties(make(partly)) == ((0, 2, 3), (1,))
    tensor[1, 2, 3] += 1e-6
    assert find_ties(make(tensor)) == ((0,), (1,), (2,))
    tensor[2, 1, 3] += 1e-6
    tensor = tensor.copy()
    assert find_ties(make(np.round(tensor, 6))) == ((0, 1), (2,))


def test_all_tensors_given_must_be_symmetric():
    flat = np.ones((3, 3))
    holes = flat > 0
    holes[0, 1] = False
    assert find_ties(flat, None) == ((0, 1),)
    assert find_ties(flat, holes) == ((0,), (1,))
