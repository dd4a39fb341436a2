import json
import sys

import pytest

from tesseral._errors import MissingExtraError
from tesseral.runtime.extras import require


def test_an_installed_module_is_returned():
    assert require("json", extra="data", purpose="a test") is json


@pytest.mark.parametrize("module", ["not_there", "not_there.inside"])
def test_a_missing_module_names_the_extra_that_brings_it(module):
    message = r"reading .rda files needs not_there, .* pip install 'tesseral\[data\]'\.$"
    with pytest.raises(MissingExtraError, match=message):
        require(module, extra="data", purpose="reading .rda files")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("import not_there_either", ModuleNotFoundError, "not_there_either"),
        ("import installed_but_broken.part", ModuleNotFoundError, r"installed_but_broken\.part"),
        ("raise RuntimeError('its own fault')", RuntimeError, "its own fault"),
    ],
)
def test_an_installed_but_broken_module_raises_its_own_error(
    text, error, message, tmp_path, monkeypatch
):
    (tmp_path / "installed_but_broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error, match=message) as caught:
        require("installed_but_broken", extra="data", purpose="a test")
    assert not isinstance(caught.value, MissingExtraError)
    sys.modules.pop("installed_but_broken", None)
