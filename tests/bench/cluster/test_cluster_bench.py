"""The benchmark runs and adds up; what it measures is not tested here."""

import json

import pytest

from tesseral.bench.cluster import accuracy, cost, run
from tesseral.bench.cluster.page import bench_page, figures, phase_section
from tesseral.bench.cluster.phase import phase_cells, run_phase
from tesseral.bench.cluster.recipe import METHODS, cells, draw

TINY = run.Size(replicates=1, dense=(20, 30), sparse=((300, 6000, 2),), memory_nodes=30)


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            accuracy, "run_cells", lambda c, n, w, steps: real(c[::12], n, w, steps=steps)
        )
        patch.setattr(accuracy, "right_numbers", lambda n: {"r=4, sigma=1": n})
        patch.setattr(accuracy, "peru", lambda: real_peru(refined=False))
        steps = []
        return run.run(TINY, lambda *step: steps.append(step), threads=1)


real, real_peru = accuracy.run_cells, accuracy.peru


def test_there_are_the_cells_of_the_paper():
    assert len(cells()) == 34
    assert len({cell.kind for cell in cells()}) == 6
    assert all(set(cell.published) >= {"dTBM", "HOSVD+"} for cell in cells())
    first = next(cell for cell in cells() if (cell.data, cell.x) == ("normal", -1.5))
    assert first.published["dTBM"] == pytest.approx(0.0281, abs=1e-4)
    assert first.bound == pytest.approx(0.0281 + 3 * (2 / 30) ** 0.5 * 0.0377 + 0.01, abs=1e-3)


@pytest.mark.parametrize("figure", sorted({cell.figure for cell in cells()}))
def test_every_kind_of_data_can_be_drawn(figure):
    cell = next(cell for cell in cells() if cell.figure == figure)
    drawn = draw(cell, 0)
    assert drawn.tensor.shape == (100, 100, 100)
    assert set(drawn.labels[0].tolist()) == set(range(5))
    assert (draw(cell, 0).tensor == drawn.tensor).all()


def test_a_run_measures_everything_and_can_be_stored(found):
    record = json.loads(json.dumps(found.as_dict()))
    assert {tuple(cell["mean"]) for cell in record["cells"]} == {(accuracy.FIRST, *METHODS)}
    assert record["peru"]["dTBM"] == pytest.approx(0.1156, abs=1e-4)
    assert record["dense"][1]["nodes"] == 30
    assert record["sparse"][0]["error_rate"] < 0.1
    names = [bar["name"] for bar in record["bars"]]
    assert "Peru, r=5" in names
    assert "mean, tied modes averaged" in names


def test_every_table_has_its_columns(found):
    tables = (run.accuracy_table(found.results), run.cost_table(found), run.bars_table(found))
    for columns, rows in tables:
        assert rows
        assert {len(row) for row in rows} == {len(columns)}


def test_the_page_shows_ours_beside_the_published(found):
    page = bench_page(found)
    assert page.count("<svg") == 2 * len(run.kinds(found.results)) + 1
    assert len(figures(found.results)) == 2 * len(run.kinds(found.results))


def test_a_bar_knows_its_side():
    assert run.Bar(name="a", value=1, limit=2).holds
    assert not run.Bar(name="a", value=3, limit=2).holds
    assert run.Bar(name="a", value=3, limit=2, least=True).holds


def test_the_planted_hypergraph_is_symmetric_and_mostly_within_blocks():
    tensor, labels = cost.hypergraph(200, 6000, 2)
    assert tensor.find_ties() == ((0, 1, 2),)
    i, j, k = labels[tensor.coords]
    assert 0.78 < ((i == j) & (j == k)).mean() < 0.92


def test_the_phase_transition_is_drawn_beside_the_published():
    settings = phase_cells()
    assert len(settings) == 2 * 9 + 2 * 8 + 4 * 8
    assert {len(draw(cell, 0).tensor.shape) for cell in settings[:10:9]} == {2, 3}
    few = [settings[0], settings[-1]]
    found = run_phase(few, 1, lambda *_: None)
    assert [set(result.rates) for result in found] == [{"dTBM", "oracle"}, {"dTBM", "init_only"}]
    assert all(0 <= result.mean(name) < 0.5 for result in found for name in result.rates)
    shown = phase_section(found)
    assert shown.count("<svg") == 4
    assert "phase_matrix, gaussian_p80: published" in shown
