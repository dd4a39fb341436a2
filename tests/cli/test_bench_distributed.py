"""``tesseral bench distributed``: small runs over gloo, what they record, and what is refused."""

import json

import pytest

from tesseral.bench.distributed.cases import CPU
from tesseral.bench.distributed.run import summary

QUICK = ("bench", "distributed", "--quick", "--lengths", 32)


def test_a_record_holds_times_plans_and_a_timeline(run, tmp_path):
    file, picture = tmp_path / "out.json", tmp_path / "out.png"
    result = run(*QUICK, "--ranks", 2, "--json", file, "--png", picture)
    assert result.exit_code == 0, result.stderr
    record = json.loads(file.read_text())
    (row,) = record["rows"]
    assert (record["ranks"], record["backend"], row["length"]) == (2, "gloo", 32)
    assert sum(row["plan"]["tiles"]) == 32
    assert {len(samples) for samples in row["samples_s"].values()} == {CPU.repeats // 3}
    assert row["predicted_s"]["plain"] > 0
    assert {line["side"] for line in record["timelines"]} == {"plain", "ours"}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "What must hold" in result.stdout


def test_what_is_hidden_is_a_share_of_what_sums_add():
    found = summary({"plain": [10.0, 12.0], "compute alone": [6.0, 8.0], "ours": [7.0, 9.0]})
    assert found["exposed_s"] == 4
    assert found["hidden"] == pytest.approx(0.75)
    assert found["ratio"] == pytest.approx((10 / 7 + 12 / 9) / 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", 1], "--ranks must be 2 or more"),
        (["--link", "fast"], "--link must be auto, none or bytes a second"),
        (["--link", -3], "--link must be auto, none or bytes a second"),
        (["--lengths", "5,x"], "--lengths must be numbers of tokens"),
        (["--lengths", "0"], "--lengths must be numbers of tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(refused, options, said):
    assert said in refused("bench", "distributed", *options)


def test_ranks_that_do_not_divide_the_heads_are_refused(refused):
    assert "3 ranks do not divide" in refused(*QUICK, "--ranks", 3)
