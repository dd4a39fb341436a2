import sys
from dataclasses import dataclass
from types import ModuleType

import pytest

from tesseral._errors import BackendError
from tesseral.runtime.registry import YES, Registry, Verdict

MODULE = "tests_registry_backends"
ENV = "TESSERAL_TEST_BACKEND"


@dataclass(frozen=True)
class Problem:
    size: int


class Big:
    name = "big"

    def supports(self, problem):
        return YES if problem.size > 10 else Verdict(False, f"size={problem.size} is below 11")


class Any:
    name = "any"
    made = 0

    def __init__(self):
        type(self).made += 1

    def supports(self, problem):
        return YES if problem.size >= 0 else Verdict(False, "size is negative")


@pytest.fixture
def registry(monkeypatch):
    module = ModuleType(MODULE)
    module.Big, module.Any = Big, Any
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.delenv(ENV, raising=False)
    return Registry("test", {"big": f"{MODULE}:Big", "any": f"{MODULE}:Any"}, env=ENV)


def test_the_first_that_supports_the_problem_is_chosen(registry):
    assert registry.names == ("big", "any")
    assert registry.choose(Problem(11)).name == "big"
    assert registry.choose(Problem(10)).name == "any"


def test_a_backend_is_made_once(registry):
    Any.made = 0
    assert registry.choose(Problem(1)) is registry.get("any")
    assert Any.made == 1


def test_a_backend_named_by_argument_is_used_before_better_ones(registry):
    assert registry.choose(Problem(11), "any").name == "any"


def test_a_backend_named_by_environment_is_used_and_the_argument_wins(registry, monkeypatch):
    monkeypatch.setenv(ENV, "any")
    assert registry.choose(Problem(11)).name == "any"
    assert registry.choose(Problem(11), "big").name == "big"


def test_an_empty_variable_names_nothing(registry, monkeypatch):
    monkeypatch.setenv(ENV, "")
    assert registry.choose(Problem(11)).name == "big"


def test_a_named_backend_never_falls_back(registry, monkeypatch):
    with pytest.raises(
        BackendError, match=r"backend 'big' cannot .*\nProblem\(size=1\)\n  big: size=1"
    ):
        registry.choose(Problem(1), "big")
    monkeypatch.setenv(ENV, "big")
    with pytest.raises(BackendError, match=rf"backend 'big' \(from {ENV}\) cannot run this call"):
        registry.choose(Problem(1))


def test_when_all_refuse_every_reason_is_told(registry):
    with pytest.raises(BackendError) as error:
        registry.choose(Problem(-1))
    assert str(error.value) == (
        "test: no backend can run this call.\n"
        "Problem(size=-1)\n"
        "  big: size=-1 is below 11\n"
        "  any: size is negative"
    )


@pytest.mark.parametrize("name", ["warp", ""])
def test_an_unknown_name_raises(registry, name):
    for ask in (lambda: registry.get(name), lambda: registry.choose(Problem(11), name)):
        with pytest.raises(BackendError, match=f"no backend '{name}'; there are big, any"):
            ask()


def test_an_unknown_name_in_the_environment_is_traced_to_it(registry, monkeypatch):
    monkeypatch.setenv(ENV, "warp")
    with pytest.raises(BackendError, match=rf"no backend 'warp' \(from {ENV}\); there are big"):
        registry.choose(Problem(11))


def test_every_verdict_can_be_asked(registry):
    assert registry.explain(Problem(1)) == {"big": Verdict(False, "size=1 is below 11"), "any": YES}


def test_a_broken_import_propagates(registry, monkeypatch):
    registry = Registry("test", {"broken": "tesseral.absent:X", "any": f"{MODULE}:Any"}, env=ENV)
    for ask in (registry.choose, registry.explain):
        with pytest.raises(ModuleNotFoundError, match=r"tesseral\.absent"):
            ask(Problem(1))
    monkeypatch.delattr(sys.modules[MODULE], "Any")
    with pytest.raises(AttributeError, match="Any"):
        registry.get("any")
