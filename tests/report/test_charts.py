import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

import tesseral.report
from tesseral._errors import MissingExtraError
from tesseral.report import charts

CSS = (Path(tesseral.report.__file__).parent / "page.css").read_text()
BARS = [
    charts.Bar(label="one & all", text="1.5 <MB>", value=1.5, role="full"),
    charts.Bar(label="two", text="3", value=3.0, role="flatquant", points=(2.0, 4.0)),
]
CHARTS = {
    "bars": lambda: charts.bars("Size <here>", BARS, xlabel="MB"),
    "grouped bars": lambda: charts.grouped_bars(
        "Errors", ["1", "2"], {"none": [1, 2], "hadamard": [0.1, 0.2]}, xlabel="x", ylabel="y"
    ),
    "curves": lambda: charts.curves(
        "Curves", {"full": [3, 2, 1], "flatquant": [1.1, 1, 0.9]}, xlabel="x", ylabel="y"
    ),
    "lines": lambda: charts.lines(
        "BIC", {"ours": ([1, 2, 3], [3, 1, 2])}, xlabel="r", ylabel="y", marks={"limit": 2.0}
    ),
    "points": lambda: charts.lines(
        "Degrees", {"ours": ([1, 2], [3, 1])}, xlabel="x", ylabel="y", points=True
    ),
    "heat map": lambda: charts.heat_map(
        "Means", [[0, 1, 2], [0.5, 1, 1]], xlabel="x", ylabel="y", rows=[1], columns=[1, 2]
    ),
    "named heat map": lambda: charts.heat_map(
        "Means", [[0, 1]], xlabel="x", ylabel="y", row_names=["a"], column_names=["b", "c"]
    ),
    "named points": lambda: charts.lines(
        "Degrees", {"ours": ([0, 1], [3, 1])}, xlabel="x", ylabel="y", names=["a", "b"]
    ),
    "signed heat map": lambda: charts.heat_map(
        "Means", [[-1, 1]], xlabel="x", ylabel="y", columns=[1]
    ),
    "tiles": lambda: charts.tiles(
        "Groups", [["ours", None], ["gold", "violet"]], xlabel="head", ylabel="block"
    ),
    "tiles with words": lambda: charts.tiles(
        "Bits",
        [["ours", "none"]],
        xlabel="x",
        ylabel="y",
        columns=["a long name", "b"],
        rows=["row"],
        texts=[["4", "8"]],
    ),
    "intervals": lambda: charts.intervals(
        "Effects", [("one", -2.0, -2.2, -1.8, "ours"), ("two", 1, 0.5, 1.5, "none")], xlabel="x"
    ),
}
every_chart = pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)


class Elements(HTMLParser):
    def __init__(self, svg):
        super().__init__()
        self.open, self.texts = [], []
        self.feed(svg)

    def handle_starttag(self, tag, _):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "text":
            self.texts.append(data)


def lengths_of_bars(svg, role):
    """Return how far each filled rectangle of a role reaches along x."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--{role}\)', svg)
    xs = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", path)] for path in paths]
    return [max(x) - min(x) for x in xs]


@every_chart
def test_a_chart_is_one_whole_element_without_header(draw):
    svg = draw()
    assert svg.startswith('<svg role="img" aria-label="')
    parsed = Elements(svg)
    assert parsed.open == []
    assert "<?xml" not in svg


@every_chart
def test_colours_come_from_the_page(draw):
    svg = draw()
    used = set(re.findall(r"var\(--([a-z]+)\)", svg))
    assert {"ink", "muted"} < used <= set(charts.ROLES)
    assert not re.search(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r"(url\(|href=\")#\w+", "", svg))


def test_every_role_has_a_colour_on_light_and_on_dark_pages():
    light, dark = CSS.split("@media (prefers-color-scheme: dark)", 1)
    for role in charts.ROLES:
        assert f"--{role}: #" in light
        assert f"--{role}: #" in dark


def test_paper_has_the_colours_of_a_light_page():
    light = CSS.split("@media (prefers-color-scheme: dark)", 1)[0]
    assert set(charts.PAPER) == set(charts.ROLES)
    for role, colour in charts.PAPER.items():
        assert f"--{role}: {colour};" in light


def test_bars_are_drawn_as_an_image_in_their_colours():
    png = charts.bars_png("Size", BARS, xlabel="MB")
    assert png == charts.bars_png("Size", BARS, xlabel="MB")
    with Image.open(BytesIO(png)) as image:
        seen = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b, *_ in image.get_flattened_data()}
    assert {charts.PAPER["full"], charts.PAPER["flatquant"]} <= seen
    assert charts.PAPER["none"] not in seen


@every_chart
def test_a_chart_styles_nothing_but_itself(draw):
    svg = draw()
    assert "<style" not in svg
    assert not re.search(r'<g [^>]*id="', svg)


@every_chart
def test_the_same_data_give_the_same_bytes(draw):
    assert draw() == draw()


def test_bars_are_as_long_as_their_values():
    svg = CHARTS["bars"]()
    (one,), (two,) = lengths_of_bars(svg, "full"), lengths_of_bars(svg, "flatquant")
    assert two == pytest.approx(2 * one, rel=1e-4)


def test_labels_texts_and_titles_stay_text():
    texts = Elements(CHARTS["bars"]()).texts
    assert {"one & all", "1.5 <MB>", "two", "3", "MB", "Size <here>"} <= set(texts)
    assert 'aria-label="Size &lt;here&gt;"' in CHARTS["bars"]()


def test_single_measurements_are_dots():
    with_points, without = (
        charts.bars("x", BARS, xlabel="x"),
        charts.bars("x", BARS[:1], xlabel="x"),
    )
    dots = r'<use [^>]*style="fill-opacity: 0; stroke: var\(--ink\)"'
    assert len(re.findall(dots, with_points)) == 2
    assert not re.findall(dots, without)


def test_a_group_has_a_bar_of_every_series():
    svg = CHARTS["grouped bars"]()
    assert len(lengths_of_bars(svg, "none")) == len(lengths_of_bars(svg, "hadamard")) == 2


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("tesseral.runtime.extras.importlib.import_module", missing)
    with pytest.raises(
        MissingExtraError, match=r"needs matplotlib.*pip install 'tesseral\[plot\]'"
    ):
        CHARTS["bars"]()


def test_tiles_are_as_many_as_there_are_roles():
    svg = charts.tiles("t", [["ours", None, "gold"], ["ours"] * 3], xlabel="x", ylabel="y")
    assert len(lengths_of_bars(svg, "ours")) == 4
    assert len(lengths_of_bars(svg, "gold")) == 1


def test_tiles_carry_their_words_and_names():
    texts = Elements(CHARTS["tiles with words"]()).texts
    assert {"a long name", "b", "row", "4", "8"} <= set(texts)
    unnumbered = charts.tiles("t", [["ours"]], xlabel="x", ylabel="y", numbered=False)
    assert "1" not in Elements(unnumbered).texts
