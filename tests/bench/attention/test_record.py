"""The JSON of a record, and going on with one."""

import json
from dataclasses import replace

import pytest

from support.bench_records import RECORD
from tesseral._errors import DataError, OutputExistsError
from tesseral.bench.attention.record import (
    SCHEMA,
    AttentionRecord,
    continue_record,
    read_record,
    write_record,
)
from tesseral.bench.timing import Method


def test_a_record_survives_json(tmp_path):
    write_record(RECORD, tmp_path / "out.json")
    assert read_record(tmp_path / "out.json") == RECORD


def test_json_says_what_is_computed_too():
    record = json.loads(json.dumps(RECORD.as_dict()))
    assert record["schema"] == SCHEMA
    row, shape = record["rows"][0], record["shapes"][0]
    assert row["case"]["name"] == RECORD.rows[0].case.name
    assert row["ours"]["median_s"] == 2.0
    assert row["ours"]["samples_s"] == [1.0, 2.0, 3.0]
    assert row["ours"]["spread"] == pytest.approx(0.5)
    assert row["unit"] == "operations/s"
    assert row["rate"] == RECORD.rows[0].case.flops / 2
    assert row["share"] == row["rate"] / row["ceiling"]
    assert [bar["met"] for bar in row["bars"]] == [True, False]
    assert [bar["possible"] for bar in row["bars"]] == [True, False]
    assert record["rows"][1]["unit"] == "bytes/s"
    assert record["rows"][1]["rate"] == RECORD.rows[1].case.kv_bytes / 2
    assert record["ablations"][0]["factor"] == 2.0
    assert record["memory"]["met"] is True
    assert (shape["ratio"], shape["slower"]) == (0.5, True)


def test_a_share_or_ratio_that_is_exactly_enough_is_met():
    bar = RECORD.rows[0].bars[0]
    assert replace(bar, measured=bar.at_least).met
    assert not replace(bar, measured=bar.at_least * 0.999).met


def test_memory_that_is_not_known_meets_nothing():
    assert not replace(RECORD.memory, extra_bytes=None).met
    assert not replace(RECORD.memory, extra_bytes=RECORD.memory.at_most + 1).met


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema": "other"}',
        json.dumps({"schema": SCHEMA}),
        json.dumps({**RECORD.as_dict(), "rows": [{}]}),
        json.dumps({**RECORD.as_dict(), "schema": "tesseral.bench.attention/99"}),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "out.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"out\.json is no record of this benchmark; choose"):
        read_record(file)


def test_a_record_is_continued_where_nothing_else_changed(tmp_path):
    file = tmp_path / "out.json"
    fresh = AttentionRecord(
        machine=RECORD.machine, code=RECORD.code, method=RECORD.method, ceilings=RECORD.ceilings
    )
    assert continue_record(fresh, file) == fresh
    write_record(RECORD, file)
    assert continue_record(fresh, file) == RECORD


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": {"cpu": "another"}},
        {"code": "another"},
        {"method": Method(repeats=7, section_s=1.0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_record_of_something_else_is_not_continued(tmp_path, changes):
    file = tmp_path / "out.json"
    write_record(RECORD, file)
    with pytest.raises(OutputExistsError, match=f"another {next(iter(changes))}; choose another"):
        continue_record(replace(RECORD, **changes), file)
