"""``bench llm`` prints what it measured, and writes it down."""

import json

import pytest

from tesseral.bench.llm import cases
from tesseral.bench.llm import run as measuring

SIDE = {
    "prefill_tokens_per_s": 100.0,
    "decode_tokens_per_s": 20.0,
    "first_token_s": 0.25,
    "tokens_read": [2048, 2048],
    "weight_bytes": 10**9,
    "decode": {"median_s": 0.05},
}
RECORD = {
    "plan": {"prompt": 2048, "short": 128, "long": 8192},
    "threads": 2,
    "read_bytes_per_s": 4e10,
    "sides": {cases.OURS: SIDE},
    "memory": {cases.OURS: 123 * 10**6},
    "quality": {
        "model": "lm",
        "perplexity": 42.5,
        "reference_perplexity": 30.25,
        "top1": 0.625,
    },
    "bars": [{"name": "decode", "value": 4.0, "limit": 5.0, "below": False, "holds": False}],
}


@pytest.fixture
def called(monkeypatch):
    calls = []

    def measure(plan, folder, watch, **options):
        calls.append((plan, folder, options))
        watch("something")
        return RECORD

    monkeypatch.setattr(measuring, "run", measure)
    return calls


def test_numbers_are_printed_and_written(run, called, tmp_path):
    file, models = tmp_path / "llm.json", tmp_path / "models"
    result = run("bench", "llm", "--json", file, "--models", models, "--threads", 2)
    assert result.exit_code == 0, result.stderr
    for part in ("100.0", "20.00", "250", "50%", "123", "perplexity 42.50", "4.00", "NO"):
        assert part in result.stdout
    assert json.loads(file.read_text()) == RECORD
    ((plan, folder, options),) = called
    assert (plan, folder, options["threads"]) == (cases.FULL, models, 2)


def test_a_side_that_read_less_is_named(run, called, monkeypatch):
    slow = SIDE | {"tokens_read": [256, 2048]}
    monkeypatch.setitem(RECORD["sides"], cases.OURS, slow)
    result = run("bench", "llm")
    assert result.exit_code == 0, result.stderr
    assert "read 256 tokens" in " ".join((result.stdout + result.stderr).split())


@pytest.mark.parametrize(("option", "plan"), [("--quick", cases.QUICK), ("--smoke", cases.SMOKE)])
def test_there_are_smaller_plans_and_models_do_not_stay(run, called, option, plan):
    assert run("bench", "llm", option).exit_code == 0
    assert called[0][0] == plan
    assert not called[0][1].exists()


def test_a_file_is_not_replaced(refused, called, tmp_path):
    file = tmp_path / "llm.json"
    file.write_text("")
    assert "llm.json exists" in refused("bench", "llm", "--json", file)
