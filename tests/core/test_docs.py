import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import tesseral.core

modules = ["tesseral.core"] + [
    f"tesseral.core.{module.name}" for module in pkgutil.iter_modules(tesseral.core.__path__)
]


@pytest.mark.parametrize("name", modules)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


functions = [
    f for f in map(vars(tesseral.core).get, tesseral.core.__all__) if inspect.isfunction(f)
]


@pytest.mark.parametrize("function", functions, ids=lambda function: function.__name__)
def test_a_parameters_section_names_every_parameter(function):
    section = re.search(r"Parameters\n-+\n(.*?)(\n\n[A-Z]|$)", inspect.getdoc(function), re.DOTALL)
    if section:
        heads = [line for line in section[1].splitlines() if not line.startswith(" ")]
        named = {name for head in heads for name in re.split(r"[*, ]+", head.split(" : ")[0])}
        assert named == set(inspect.signature(function).parameters)
