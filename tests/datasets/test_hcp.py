import sys

import numpy as np
import pytest

from tesseral._errors import DataError, MissingExtraError
from tesseral.datasets import load_hcp

rdata = pytest.importorskip("rdata")
pandas = pytest.importorskip("pandas")

CONNECTED = (np.random.default_rng(0).random((4, 4, 3)) < 0.4).astype(np.int32)


def attributes(n_persons=3):
    # out of Arrow, where pandas keeps strings if it can and from where rdata cannot write them
    with pandas.option_context("mode.string_storage", "python"):
        return pandas.DataFrame(
            {
                "Gender": pandas.Categorical(["F", "M", "F"]),
                "Age": [25.5, np.nan, 31.0],
                "Strength": pandas.array([110, None, 98], dtype="Int32"),
                "Session": np.array([1, 2, 1], dtype=np.int32),
                "Left": [True, False, False],
                "Note": ["a", None, "c"],
            },
            index=pandas.RangeIndex(1, 4),
        )[:n_persons]


def write(path, objects):
    rdata.write_rda(path, objects)
    return path


def test_the_tensor_and_the_attributes_come_back(tmp_path):
    path = write(tmp_path / "HCP.rda", {"HCP": {"tensor": CONNECTED, "attr": attributes()}})
    hcp = load_hcp(path)
    np.testing.assert_array_equal(hcp.tensor, CONNECTED)
    expected = {
        "Gender": np.array(["F", "M", "F"]),
        "Age": np.array([25.5, np.nan, 31.0]),
        "Strength": np.array([110.0, np.nan, 98.0]),
        "Session": np.array([1, 2, 1]),
        "Left": np.array([True, False, False]),
        "Note": np.array(["a", "", "c"]),
    }
    assert list(hcp.attributes) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(hcp.attributes[name], values)
        assert hcp.attributes[name].dtype.kind == values.dtype.kind


def test_the_record_cannot_be_changed(tmp_path):
    path = write(tmp_path / "HCP.rda", {"HCP": {"tensor": CONNECTED, "attr": attributes()}})
    hcp = load_hcp(path)
    with pytest.raises(ValueError, match="read-only"):
        hcp.tensor[0, 0, 0] = 1
    with pytest.raises(TypeError):
        hcp.attributes["Gender"] = np.zeros(3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"load_hcp: there is no file .*absent\.rda"):
        load_hcp(tmp_path / "absent.rda")


@pytest.mark.parametrize("keep", [0, 20, 100, -3], ids="first{}".format)
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = write(tmp_path / "HCP.rda", {"HCP": {"tensor": CONNECTED, "attr": attributes()}})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a readable R data file"):
        load_hcp(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "HCP.rda"
    path.write_text("not R data")
    with pytest.raises(DataError, match="not a readable R data file"):
        load_hcp(path)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"peru": 1}, "must hold an R object HCP, it holds peru"),
        ({"HCP": {"tensor": CONNECTED}}, "list of 'tensor' and 'attr'; it has members tensor"),
        ({"HCP": CONNECTED}, "list of 'tensor' and 'attr'; it has no members"),
        (
            {"HCP": {"tensor": CONNECTED[0], "attr": attributes()}},
            r"numbers of shape \(regions, regions, persons\), got int32 of shape \(4, 3\)",
        ),
        (
            {"HCP": {"tensor": CONNECTED[:2], "attr": attributes()}},
            r"got int32 of shape \(2, 4, 3\)",
        ),
        (
            {"HCP": {"tensor": CONNECTED, "attr": attributes(2)}},
            "one row for each of the 3 persons, got 2 rows",
        ),
        (
            {"HCP": {"tensor": CONNECTED, "attr": [1, 2, 3]}},
            "one row for each of the 3 persons, got list",
        ),
    ],
    ids=["name", "member", "list", "order", "square", "rows", "frame"],
)
def test_other_contents_are_refused_by_name(tmp_path, objects, message):
    with pytest.raises(DataError, match=message):
        load_hcp(write(tmp_path / "HCP.rda", objects))


def test_without_rdata_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(MissingExtraError, match=r"load_hcp needs rdata.*tesseral\[data\]"):
        load_hcp(tmp_path / "HCP.rda")
