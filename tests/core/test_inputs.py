import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from support.frameworks import every_framework, to_numpy
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core.inputs import check_tensor


def check(tensor, **options):
    return check_tensor(tensor, where="Method", **options)


@every_framework
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_complete_floating_tensor_comes_back_itself(make, dtype):
    tensor = make(np.ones((2, 3, 4), dtype=dtype))
    values, observed = check(tensor)
    assert values is tensor
    assert observed is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [("bool", "float64"), ("int32", "float64"), ("uint8", "float64"), ("float16", "float32")],
)
@every_framework
def test_other_numbers_become_floating(make, given, kept):
    values, _ = check(make(np.eye(3).astype(given)))
    assert to_numpy(values).dtype == kept
    np.testing.assert_array_equal(to_numpy(values), np.eye(3))


def test_bfloat16_becomes_float32():
    assert check(torch.ones(2, 2, dtype=torch.bfloat16))[0].dtype == torch.float32


@pytest.mark.parametrize("given", [[[1, 2], [3, 4]], np.array([[1, 2], [3, 4]], dtype=object)])
def test_lists_and_objects_become_numpy_float64(given):
    values, _ = check(given)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [[1, 2], [3, 4]])


@every_framework
def test_nan_is_missing_only_where_allowed(make):
    tensor = make(np.array([[1.0, np.nan], [3.0, 4.0]]))
    values, observed = check(tensor, allow_missing=True)
    np.testing.assert_array_equal(to_numpy(values), [[1, 0], [3, 4]])
    np.testing.assert_array_equal(to_numpy(observed), [[True, False], [True, True]])
    assert np.isnan(to_numpy(tensor)).sum() == 1  # the caller's array is left alone
    with pytest.raises(ParameterError, match=r"^Method: the tensor contains infinity or NaN"):
        check(tensor)


@every_framework
def test_the_mask_hides_anything_and_joins_with_nan(make):
    tensor = make(np.array([[np.inf, np.nan, 3.0], [1.0, 2.0, 5.0]]))
    mask = make(np.array([[False, True, False], [True, True, True]]))
    values, observed = check(tensor, mask=mask, allow_missing=True)
    np.testing.assert_array_equal(to_numpy(values), [[0, 0, 0], [1, 2, 5]])
    np.testing.assert_array_equal(to_numpy(observed), [[False, False, False], [True, True, True]])
    hides_all_that_is_not_finite = [[False, False, True], [True, True, True]]
    assert check(tensor, mask=hides_all_that_is_not_finite)[1].sum() == 4


def test_a_mask_of_numpy_serves_a_tensor_of_torch():
    _, observed = check(torch.ones(1, 2), mask=np.array([[True, False]]))
    assert observed.tolist() == [[True, False]]


def test_a_mask_that_hides_nothing_is_none():
    assert check(np.ones((2, 2)), mask=np.ones((2, 2), dtype=bool))[1] is None


@pytest.mark.parametrize("allow_missing", [False, True])
def test_infinity_is_never_observed(allow_missing):
    with pytest.raises(ParameterError, match=r"contains infinity.* in .*give a mask"):
        check(np.array([[1.0, -np.inf]]), allow_missing=allow_missing)


def test_vectors_pass_only_where_asked_for():
    with pytest.raises(ShapeError, match=r"needs a tensor with at least 2 modes, got shape \(3,\)"):
        check(np.ones(3))
    assert check(np.ones(3), min_order=1)[0].shape == (3,)


@pytest.mark.parametrize(
    ("tensor", "options", "error", "message"),
    [
        (csr_array(np.eye(2)), {}, DtypeError, "sparse input is not supported"),
        ([["a", "b"]], {}, DtypeError, "entries must be real numbers: could not convert string"),
        ([[{}, 1]], {}, DtypeError, "entries must be real numbers: .*a real number, not 'dict'"),
        (np.ones((2, 2), dtype=complex), {}, ParameterError, "Complex data not supported"),
        (np.ones((2, 0)), {}, ShapeError, r"one index in every mode, got .* shape \(2, 0\)"),
        (np.full((2, 2), np.nan), {"allow_missing": True}, ParameterError, "every entry"),
        (np.ones((2, 2)), {"mask": [[1, 0], [1, 1]]}, DtypeError, "mask must be boolean .* int64"),
        (np.ones((2, 2)), {"mask": [True, False]}, ShapeError, r"shape \(2, 2\) .* got \(2,\)"),
        (
            np.ones((2, 2)),
            {"mask": csr_array(np.eye(2, dtype=bool))},
            DtypeError,
            "sparse input is not supported",
        ),
    ],
)
def test_what_is_no_tensor_is_refused(tensor, options, error, message):
    with pytest.raises(error, match=f"^Method: .*{message}"):
        check(tensor, **options)
