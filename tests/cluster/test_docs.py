import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import tesseral.cluster

modules = ["tesseral.cluster"] + [
    f"tesseral.cluster.{module.name}" for module in pkgutil.iter_modules(tesseral.cluster.__path__)
]
public = [vars(tesseral.cluster)[name] for name in tesseral.cluster.__all__]


@pytest.mark.parametrize("name", modules)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("thing", public, ids=lambda thing: thing.__name__)
def test_a_parameters_section_names_every_parameter(thing):
    section = re.search(r"Parameters\n-+\n(.*?)(\n\n[A-Z]|$)", inspect.getdoc(thing), re.DOTALL)
    if section:
        heads = [line for line in section[1].splitlines() if not line.startswith(" ")]
        named = {name for head in heads for name in re.split(r"[*, ]+", head.split(" : ")[0])}
        assert named == set(inspect.signature(thing).parameters)
