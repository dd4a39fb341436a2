import pytest

from tesseral.report import page

HOSTILE = '<script>"&'
ESCAPED = "&lt;script&gt;&quot;&amp;"


@pytest.mark.parametrize(
    "made",
    [
        page.page(HOSTILE, []),
        page.section(HOSTILE, []),
        page.section("title", [], anchor=HOSTILE),
        page.contents({HOSTILE: "words"}),
        page.contents({"anchor": HOSTILE}),
        page.paragraph(HOSTILE),
        page.paragraph("text", HOSTILE),
        page.facts([(HOSTILE, HOSTILE)]),
        page.table(HOSTILE, [HOSTILE], [[HOSTILE]]),
        page.figure("", HOSTILE),
        page.key({HOSTILE: HOSTILE}),
        page.quotation(HOSTILE, HOSTILE),
    ],
)
def test_text_is_escaped_everywhere(made):
    assert "<script" not in made
    assert ESCAPED in made


def test_bodies_are_taken_as_they_are():
    inner = page.paragraph("text")
    assert inner in page.page("title", [inner])
    assert inner in page.section("title", [inner])
    assert inner in page.grid([inner])
    assert "<svg>" in page.figure("<svg>", "caption")


def test_a_page_says_its_language_width_and_style():
    made = page.page("A title", ["<p>body</p>"])
    assert made.startswith("<!doctype html>\n")
    for part in ('<html lang="en">', 'charset="utf-8"', "width=device-width", "<title>A title<"):
        assert part in made
    assert "prefers-color-scheme: dark" in made
    assert made.endswith("<p>body</p>\n</body></html>\n")


def test_a_table_has_a_cell_for_every_entry():
    made = page.table("caption", ["a", "b"], [["1", "2"], ["3", "4"]])
    assert made.count("<th ") == 2
    assert made.count("<tr><td>") == 2
    assert made.count("<td>") == 4
