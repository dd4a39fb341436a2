import numpy as np
import pytest
import torch

from support.frameworks import every_framework
from tesseral._errors import DtypeError
from tesseral.core._arrays import array_namespace, check_floating, like, to_float, to_numpy


@pytest.mark.parametrize("given", [[1.0], 1.0, None, "array"])
def test_what_is_no_array_is_refused_by_name(given):
    with pytest.raises(DtypeError, match=f"somewhere: needs arrays.*got {type(given).__name__}"):
        array_namespace("somewhere", given)


def test_two_frameworks_do_not_meet():
    with pytest.raises(DtypeError, match=r"somewhere: all arrays .* got numpy and torch"):
        array_namespace("somewhere", np.ones(1), None, torch.ones(1))


@every_framework
def test_values_travel_to_the_reference_and_back(make):
    reference = make(np.ones(1, dtype=np.float32))
    there = like(np.arange(3.0), reference)
    assert type(there) is type(reference)
    assert there.dtype == reference.dtype
    assert there.device == reference.device
    np.testing.assert_array_equal(to_numpy(there), [0, 1, 2])


def test_recorded_tensors_give_numbers_without_a_warning():
    recorded = torch.tensor(2.0, requires_grad=True) * 3
    assert to_float(recorded) == 6.0


def test_integers_are_not_floating():
    with pytest.raises(DtypeError, match="somewhere: needs a real floating-point array, got int64"):
        check_floating("somewhere", np.ones(1, dtype=np.int64))
