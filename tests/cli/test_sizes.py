import pytest

from tesseral._errors import ParameterError
from tesseral.cli.sizes import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("32GB", 32 * 10**9),
        ("29.5GiB", int(29.5 * 2**30)),
        ("800 MB", 800 * 10**6),
        ("8g", 8 * 10**9),
        ("1TiB", 2**40),
        ("4096", 4096),
    ],
)
def test_amounts_are_read_as_people_write_them(text, expected):
    assert parse_bytes(text, "--x") == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.2.3GB", "5 parsecs", "3iB"])
def test_what_is_no_amount_is_refused_by_its_option(text):
    with pytest.raises(ParameterError, match=r"--x: .* is no amount of memory; write it as 32GB"):
        parse_bytes(text, "--x")
