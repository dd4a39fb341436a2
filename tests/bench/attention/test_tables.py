from dataclasses import replace

import pytest
from PIL import Image

from support.bench_records import RECORD
from tesseral.bench.attention import tables
from tesseral.bench.attention.chart import chart


def test_every_bar_has_a_line_that_says_whether_it_is_met():
    columns, lines = tables.main_table(RECORD)
    assert columns == ["case", "against", "at least", "measured", "at the ceiling", "met"]
    prefill, decode = (row.case.name for row in RECORD.rows)
    assert lines == [
        [prefill, "sdpa", "1.9x", "2x", "2.5x", "yes"],
        ["", "read bandwidth", "75%", "50%", "70%", "NO: beyond this machine"],
        [decode, "our bf16", "1.6x", "2x", "4x", "yes"],
        [prefill, "peak extra memory", "at most 64 MiB", "1 MiB", "", "yes"],
    ]
    assert tables.verdict(RECORD) == "3 of 4 met, 1 beyond what this machine could do at most"


def test_a_bar_that_could_have_been_met_is_plainly_missed():
    bar = replace(RECORD.rows[0].bars[1], at_ceiling=0.8)
    record = replace(RECORD, rows=(replace(RECORD.rows[0], bars=(bar,)),))
    assert tables.main_table(record)[1][0][-1] == "NO"
    assert tables.verdict(record) == "1 of 2 met"


def test_without_the_long_prefill_the_verdict_says_so():
    record = type(RECORD)(
        machine={}, code="", method=RECORD.method, ceilings=RECORD.ceilings, rows=RECORD.rows
    )
    assert tables.verdict(record) == (
        "2 of 3 met, 1 beyond what this machine could do at most; peak memory not measured"
    )


def test_every_side_has_a_line_with_rate_share_and_memory():
    _, lines = tables.peers_table(RECORD)
    flops = RECORD.rows[0].case.flops
    assert lines[0][1:] == [
        "ours (native)",
        "2 s",
        "50.0%",
        f"{flops / 2 / 1e9:.3g} GFLOP/s",
        f"{flops / 2 / 4e9:.0%}",
        "3.0 MB",
    ]
    assert lines[1][:4] == ["", "sdpa", "4 s", "0.0%"]
    assert lines[1][-1] == "5.0 MB"
    assert lines[2][4].endswith(" GB/s")
    # ourselves on another case have another number of bytes
    assert lines[3][1:] == ["our bf16", "4 s", "0.0%", "", "", ""]


def test_an_instruction_that_a_target_has_not_is_a_dash():
    _, lines = tables.ceilings_table(RECORD)
    assert lines == [
        ["wide", "2 GFLOP/s", "4 GFLOP/s", "-"],
        ["scalar", "1 GFLOP/s", "-", "-"],
    ]


def test_shapes_that_are_slower_are_listed_and_others_are_not():
    _, lines = tables.slower_table(RECORD)
    assert lines == [[RECORD.shapes[0].case.name, "native", "2 s", "sdpa", "1 s", "0.50x"]]


def test_what_a_part_is_worth():
    _, lines = tables.ablation_table(RECORD)
    assert lines == [["without it", RECORD.rows[0].case.name, "2 s", "4 s", "2.00x"]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.214, "3.21 s"), (0.0456, "45.6 ms"), (0.001, "1 ms"), (7.891e-6, "7.89 us")],
)
def test_times_have_three_digits(seconds, text):
    assert tables.time_text(seconds) == text


def test_the_chart_is_an_image(tmp_path):
    (tmp_path / "chart.png").write_bytes(chart(RECORD))
    with Image.open(tmp_path / "chart.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
