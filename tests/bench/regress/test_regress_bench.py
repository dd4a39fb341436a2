import json
from dataclasses import replace

import numpy as np
import pytest

from tesseral.bench.regress import quality, run
from tesseral.bench.regress.cases import BRAIN, SPEED, growth
from tesseral.bench.regress.page import bench_page
from tesseral.datasets import make_tensor_response

TINY = replace(SPEED[0], name="tiny", shape=(12, 12, 12), widths=(4, 4, 4), rank=(2, 2, 2))


def test_the_bound_of_a_plain_regression_is_the_textbook_one():
    planted = make_tensor_response((40, 3), 3, (4, None), random_state=0)
    x = planted.covariates[0]
    # rank 3 is all that a matrix of three columns can have
    expected = np.diag(np.linalg.inv(x.T @ x)).mean()
    assert quality.bound(planted, "normal") == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
def test_errors_lie_near_the_bound(family):
    cell = quality.error_cell(family, 30, 2, truths=1, draws=2)
    assert 0.5 < cell["ratio"] < 2.0
    assert cell["ratio"] == pytest.approx(cell["error"] / cell["bound"])


def test_responses_are_drawn_around_the_planted_mean():
    planted = make_tensor_response((20, 20, 20), 2, 4, family="poisson", random_state=0)
    for family in ("binomial", "poisson"):
        shown = replace(planted, mean=np.full((20, 20, 20), 0.3))
        y = quality.redrawn(shown, family, 0)
        assert y.mean() == pytest.approx(0.3, abs=0.03)
        np.testing.assert_array_equal(y, quality.redrawn(shown, family, 0))


def test_a_fit_is_timed_beside_the_product_and_held_to_the_truth(monkeypatch):
    monkeypatch.setattr(run, "PRODUCT", 64)
    row = run._timed(TINY, True, lambda _: None)
    assert row["products"] == pytest.approx(row["seconds"] / row["product_s"])
    assert row["gain"] > 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "_true_log_likelihood", lambda *_: 1e9)
        with pytest.raises(run._BadFitError, match="less likely than the truth; nothing is timed"):
            run._timed(TINY, True, lambda _: None)


def test_bars_say_what_holds():
    row = {"name": "fit", "products": 3.0, "bar": 4.0, "gain": 5.0}
    record = {
        "speed": [row, {**row, "name": "slow", "products": 4.5}],
        "memory_bytes": 299e6,
        "quality": {
            "error_ratio": 1.05,
            "exact_ranks": 0.8,
            "holes": {"normal": 1.5, "gamma": 2.0},
            "coverage": {"normal": 0.95, "poisson": 0.98},
        },
    }
    verdicts = {bar["name"]: bar["holds"] for bar in run.bars(record)}
    assert verdicts == {
        "fit: matrix products": True,
        "slow: matrix products": False,
        f"{BRAIN.name}: MB": True,
        f"{BRAIN.name}: log-likelihood above the truth's": True,
        "error / information bound": True,
        "BIC exact": False,
        "normal, 30% missing: error": True,
        "gamma, 30% missing: error": False,
        "normal: 95% intervals, low": True,
        "normal: 95% intervals, high": True,
        "poisson: 95% intervals, low": True,
        "poisson: 95% intervals, high": False,
    }


def test_cases_that_grow_differ_in_one_thing():
    grown = growth()
    assert {case.missing for case in grown["size"]} == {0.0}
    assert len({case.shape for case in grown["rank"]}) == 1
    holed = replace(TINY, missing=0.5)
    assert 0.4 < np.isnan(holed.response(holed.planted())).mean() < 0.6


def test_the_command_writes_what_was_measured(run_command, tmp_path, monkeypatch):
    record = {"threads": 1, "speed": [], "growth": {}, "bars": [], "quick": True}
    monkeypatch.setattr(run, "run", lambda **_: record)
    file = tmp_path / "out.json"
    result = run_command("bench", "regress", "--json", file)
    assert result.exit_code == 0, result.stderr
    assert json.loads(file.read_text()) == record
    assert "What must hold" in result.stdout
    assert run_command("bench", "regress", "--json", file).exit_code == 2


def test_the_page_draws_growth_and_errors():
    speed = {"name": "a", "seconds": 1.0, "product_s": 0.5, "products": 2.0, "rounds": 3}
    cells = [
        {"family": family, "rank": rank, "d": d, "ratio": 1.0}
        for family in quality.FAMILIES
        for rank in (2, 4)
        for d in (30, 60)
    ]
    record = {
        "threads": 2,
        "speed": [speed],
        "growth": {what: [{"at": 1.0, "seconds": 0.1}] * 2 for what in growth()},
        "quality": {"cells": cells},
        "bars": [{"name": "b", "value": 1.0, "limit": 2.0, "below": True, "holds": True}],
    }
    page = bench_page(record)
    assert page.count("<svg") == 3 + 2
    assert "Growth with missing" in page


@pytest.fixture
def run_command():
    from typer.testing import CliRunner

    from tesseral.cli.main import COMMANDS, build

    def call(*arguments):
        return CliRunner().invoke(build(COMMANDS), [str(argument) for argument in arguments])

    return call
