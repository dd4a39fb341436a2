"""Pages in a browser: nothing is complained of, nothing sticks out, dark is dark."""

import pytest

from support.browser import browser, show
from support.checkpoints import TEXT, save
from support.models import tiny_llama
from tesseral.cluster import DegreeCorrectedTensorBlockModel
from tesseral.datasets import make_block_tensor
from tesseral.llm.analysis import analyze
from tesseral.report.analysis.files import write_analysis
from tesseral.report.cluster.run import fit_record, write_record

pytestmark = pytest.mark.skipif(
    browser() is None, reason="no Chromium here: install the package chromium"
)

PAGES = ("demo", "analysis", "cluster")


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    model = save(tiny_llama(), folder / "model")
    sizes = {"sequences": 2, "sequence_length": 24, "n_groups": 2}
    write_analysis(analyze(model, TEXT, **sizes), {"cpu": "some"}, folder / "analysis")
    planted = make_block_tensor((20, 20, 20), 2, random_state=0)
    record = fit_record(DegreeCorrectedTensorBlockModel(2), planted.tensor, data="planted")
    write_record(record, planted.tensor, folder / "cluster")
    places = {"demo": finished[1], "analysis": folder / "analysis", "cluster": folder / "cluster"}
    return {name: place / "report.html" for name, place in places.items()}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_phone_and_desk_without_a_complaint(pages, name, width):
    shown = show(pages[name], width)
    assert shown.console == []
    assert shown.out == []
    assert shown.width <= width


def test_a_page_is_dark_where_the_reader_wants_it_so(pages):
    light, dark = (show(pages["cluster"], 390, dark=wanted).background for wanted in (False, True))
    assert (light, dark) == ("rgb(251, 251, 249)", "rgb(21, 23, 26)")


def test_the_measure_sees_what_is_wrong(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><div class='wide' style='width:600px'>wide</div>"
        "<script>console.error(1)</script>"
    )
    shown = show(bad, 390)
    assert shown.out == ["DIV.wide"]
    assert shown.width > 390
    assert len(shown.console) == 1
    picture = tmp_path / "picture.png"
    show(bad, 390, picture=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
