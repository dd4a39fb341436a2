"""Nations in the demo's report."""

import pytest

from tesseral.report.demo.nations import GROUPS, nations_section, regress_nations


@pytest.fixture(scope="module")
def found():
    return regress_nations(0)


def test_relations_fall_into_military_economic_and_alliance(found):
    groups = dict(found.groups)
    assert len(groups) == GROUPS
    assert sum(map(len, groups.values())) == 56
    assert {"violentactions", "warning", "aidenemy"} <= set(groups["Military and hostile acts"])
    assert {"tourism", "treaties", "relexports"} <= set(groups["Economic"])
    assert {"embassy", "reldiplomacy"} <= set(groups["Alliance and diplomacy"])
    assert {"ngo", "intergovorgs3"} <= set(groups["Organisations"])


def test_missing_entries_are_left_out_and_effects_are_tested(found):
    assert found.n_entries == 14 * 14 * 56 - 784 - 435
    assert len(found.effects) == 6
    assert all(0 <= p <= 1 for _, *ps in found.effects for p in ps)


def test_the_section_shows_groups_pictures_and_tests(found):
    text = nations_section(found)
    assert "<h2>Regression: relations among nations</h2>" in text
    assert text.count("<svg ") == 4
    assert "medicinengo" in text
    assert "reldiplomacy" in text
