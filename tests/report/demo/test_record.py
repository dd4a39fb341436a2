"""The record's means, order and tables."""

import json
from dataclasses import replace

import pytest

from tesseral.llm.evaluate import Agreement
from tesseral.report.demo.plan import NAMES
from tesseral.report.demo.record import accuracy_table, size_table


def with_perplexities(record, perplexities):
    """Return the record with other perplexities, by (method, seed)."""
    models = [
        replace(
            model,
            agreement=Agreement(
                n_tokens=10,
                perplexity=perplexities[model.method, model.seed],
                reference_perplexity=10.0,
                top1=0.5,
                kl_divergence=0.25,
            ),
        )
        for model in record.models
    ]
    return replace(record, models=tuple(models))


@pytest.fixture
def made(finished):
    return with_perplexities(finished[0], ORDERED)


ORDERED = {
    ("full", None): 10.0,
    ("none", 3): 40.0,
    ("hadamard", 3): 14.0,
    ("hadamard", 4): 15.0,
    ("flatquant", 3): 11.0,
    ("flatquant", 4): 12.0,
}


def test_means_are_over_the_seeds_of_a_method(made):
    assert made.mean("flatquant", lambda m: m.agreement.perplexity) == 11.5
    assert made.mean("none", lambda m: m.agreement.ratio) == 4.0


def test_order_must_hold_with_every_seed(made):
    assert made.ordered
    for change in (
        {("flatquant", 4): 15.0},
        {("flatquant", 3): 14.5},
        {("hadamard", 4): 40.0},
    ):
        assert not with_perplexities(made, ORDERED | change).ordered


def test_the_accuracy_table_has_each_seed_and_the_mean(made):
    columns, rows = accuracy_table(made)
    assert columns[:3] == ["model", "perplexity", "ratio"]
    assert rows == [
        ["Full precision", "10.00", "1.000", "50.0%", "0.250"],
        ["Round to nearest", "40.00", "4.000", "50.0%", "0.250"],
        ["Hadamard, seed 3", "14.00", "1.400", "50.0%", "0.250"],
        ["Hadamard, seed 4", "15.00", "1.500", "50.0%", "0.250"],
        ["Hadamard, mean", "14.50", "1.450", "", ""],
        ["FlatQuant, seed 3", "11.00", "1.100", "50.0%", "0.250"],
        ["FlatQuant, seed 4", "12.00", "1.200", "50.0%", "0.250"],
        ["FlatQuant, mean", "11.50", "1.150", "", ""],
    ]


def test_with_one_seed_the_table_names_no_seed(made):
    single = replace(
        made,
        plan=replace(made.plan, seeds=(3,)),
        models=tuple(m for m in made.models if m.seed in (None, 3)),
    )
    assert [row[0] for row in accuracy_table(single)[1]] == list(NAMES.values())


def test_the_size_table_has_a_row_of_every_method(made):
    columns, rows = size_table(made)
    assert [row[0] for row in rows] == list(NAMES.values())
    assert {len(row) for row in rows} == {len(columns)}
    full, quantised = made.models[0].footprint, made.models[1].footprint
    assert rows[0][3] == f"{full.block_bytes / 1e3:.1f} kB"
    assert rows[1][4] == f"{quantised.cache_bytes_per_token:.0f} B"


def test_the_record_is_plain_numbers_ready_for_json(made):
    values = json.loads(json.dumps(made.as_dict()))
    assert values["machine"]["cpu"] == made.machine["cpu"]
    assert values["config"] == made.plan.config.to_dict()
    assert values["summary"]["flatquant"] == {
        "perplexity": 11.5,
        "perplexity_ratio": 1.15,
        "each_ratio": [1.1, 1.2],
    }
    assert values["ordered_with_every_seed"] is True
    assert values["seeds"] == [3, 4]
    assert [model["method"] for model in values["models"]] == [m.method for m in made.models]
    entry = values["models"][1]
    assert entry["perplexity_ratio"] == 4.0
    assert entry["memory_bytes"] == made.models[1].footprint.memory_bytes
    errors = [s.rounding_error for s in made.models[1].sites if s.site == "mlp_input"]
    assert entry["rounding_errors"]["mlp_input"] == errors
    assert len(errors) == 2
