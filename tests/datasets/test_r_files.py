"""What R wrote comes out as arrays under R's names."""

import numpy as np
import pytest

from tesseral._errors import DataError
from tesseral.datasets import read_r

rdata = pytest.importorskip("rdata")
pandas = pytest.importorskip("pandas")


def test_members_of_lists_and_columns_have_names_as_in_r(tmp_path):
    # out of Arrow, from where rdata cannot write strings
    with pandas.option_context("mode.string_storage", "python"):
        frame = pandas.DataFrame({"age": [1.5, 2.5], "sex": ["F", "M"]})
    tensor = np.arange(24.0).reshape(2, 3, 4)
    rdata.write_rda(tmp_path / "a.RData", {"all": {"tensor": tensor, "attr": frame}, "n": 3})
    found = read_r(tmp_path / "a.RData")
    assert {"all$tensor", "all$attr", "all$attr$age", "all$attr$sex"} <= set(found)
    np.testing.assert_array_equal(found["all$tensor"], tensor)
    np.testing.assert_array_equal(found["all$attr$age"], [1.5, 2.5])
    assert list(found["all$attr"].columns) == ["age", "sex"]


def test_the_object_of_an_rds_file_has_the_name_of_the_file(tmp_path):
    rdata.write_rds(tmp_path / "mine.rds", np.eye(3))
    found = read_r(tmp_path / "mine.rds")
    np.testing.assert_array_equal(found["mine"], np.eye(3))


def test_files_without_arrays_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_r(tmp_path / "none.rda")
    (tmp_path / "bad.rds").write_text("R?")
    with pytest.raises(DataError, match="not a readable R data file"):
        read_r(tmp_path / "bad.rds")
