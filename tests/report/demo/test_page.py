"""The report is one page that fetches nothing and says what the record says."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tesseral.report.demo.page import demo_page
from tesseral.report.demo.plan import NAMES

VOID = {"meta"}


class Document(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def text(finished):
    return (finished[1] / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def document(text):
    return Document(text)


def test_every_element_is_closed(document):
    assert document.open == []


def test_nothing_is_fetched(text, document):
    # an image inside the page is not fetched either
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in document.links)
    assert not re.search(r"https?:|@import|<script|<link|<img|<iframe", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_every_reference_is_defined(text, document):
    links = [link[1:] for link in document.links if link.startswith("#")]
    wanted = {*re.findall(r"url\(#(\w+)\)", text), *links}
    assert wanted <= set(re.findall(r' id="(\w+)"', text))


def test_it_has_every_section_and_picture(text):
    titles = ("How well it still predicts", "How much room it takes", "What it writes")
    for title in (
        *titles,
        "Clusters: the legislature of Peru",
        "Regression: relations among nations",
        "How fast a 4-bit layer is here",
        "Exact attention, on this machine",
    ):
        assert f"<h2>{title}</h2>" in text
    assert text.count("<svg ") == 3 + 4 + 2 + 1 + 2 + 2 + 4


def test_it_clusters_the_legislature_as_the_paper_does(finished, document):
    legislature = finished[0].legislature
    assert legislature.fit.error_rate == pytest.approx(0.1156, abs=5e-5)
    assert legislature.fit.error_rate < min(legislature.peers.values())
    assert f"{legislature.fit.error_rate:.4f}" in " ".join(document.words)


def test_it_shows_what_was_timed_and_the_tiles_of_a_mask(finished, document):
    words = " ".join(document.words)
    speeds = finished[0].speeds
    for race in (*speeds.prefill, *speeds.decode, *speeds.layers):
        assert race.name in words
        assert f"{race.ratio:.2f} x" in words
    assert "196 full (green)" in words


def test_clusters_stand_beside_parties(text):
    assert "Legislators of each party, by cluster." in text


def test_it_shows_the_numbers_of_every_model(finished, document):
    words = " ".join(document.words)
    for model in finished[0].models:
        assert f"{model.agreement.perplexity:.2f}" in words
        assert f"{model.agreement.top1:.1%}" in words
    for name in NAMES.values():
        assert name in words


def test_samples_follow_their_prompt_and_are_escaped(finished, text, document):
    assert "It &lt;was&gt;" in text
    assert "<was>" not in text
    for method in NAMES:
        assert "It <was>" + finished[0].of(method)[0].sample in document.words


def test_settings_and_machine_are_listed(finished, document):
    record = finished[0]
    for name in (*record.plan.config.to_dict(), *record.machine):
        assert name in document.words
    assert "none, hadamard, flatquant" in document.words
    assert record.machine["cpu"] in document.words


def test_with_one_seed_there_are_no_dots_and_no_means(finished):
    record = finished[0]
    single = replace(
        record,
        plan=replace(record.plan, seeds=(3,)),
        models=tuple(m for m in record.models if m.seed in (None, 3)),
    )
    one, two = demo_page(single), demo_page(record)
    assert "Seed 3." in one
    assert "Means over seeds" not in one
    assert "Means over seeds 3, 4, each a dot." in two
    dot = "fill-opacity: 0; stroke: var(--ink)"
    assert (one.count(dot), two.count(dot)) == (0, len(record.models))


def test_the_widths_are_those_of_the_configuration(finished):
    record = finished[0]
    config = replace(record.plan.config, weight_bits=8, key_bits=2)
    page = demo_page(replace(record, plan=replace(record.plan, config=config)))
    assert "<h2>A language model in W8A4K2V4</h2>" in page
    assert "8-bit weights, 4-bit activations, and a cache of 2-bit keys and 4-bit values" in page
