import json

import pytest

from tesseral.bench.steps import Steps, beside


def never():
    pytest.fail("this is known")


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    file = tmp_path / "out.json.steps"
    assert file == beside(tmp_path / "out.json")
    assert Steps(file, {"threads": 2}).get("a", lambda: [1.5]) == [1.5]
    later = Steps(file, {"threads": 2})
    assert later.get("a", never) == [1.5]
    assert later.get("b", lambda: {"x": 2}) == {"x": 2}
    assert json.loads(file.read_text())["steps"] == {"a": [1.5], "b": {"x": 2}}
    later.finish()
    assert not file.exists()


def test_what_was_measured_otherwise_is_measured_again(tmp_path):
    file = tmp_path / "steps"
    Steps(file, {"threads": 2}, "core").get("a", lambda: 1)
    assert Steps(file, {"threads": 1}, "core").get("a", lambda: 2) == 2
    assert Steps(file, {"threads": 1}, "cluster").get("a", lambda: 3) == 3


def test_without_a_file_nothing_is_kept(tmp_path):
    steps = Steps(beside(None), {})
    assert [steps.get("a", lambda: 1), steps.get("a", never)] == [1, 1]
    steps.finish()
    assert not list(tmp_path.iterdir())
