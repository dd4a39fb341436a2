"""The hand-written stub of the native module says what the module says."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import tesseral
from tesseral import _native

STUB = ast.parse((Path(tesseral.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}


def names(nodes):
    """Return the names of functions and of annotated and plain values."""
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in nodes if isinstance(node, ast.AnnAssign)}
    members = {node.targets[0].id for node in nodes if isinstance(node, ast.Assign)}
    return functions, values, members


def parameters_of(function):
    """Return the parameters that a native function's signature gives a type: all but self."""
    signature = inspect.getdoc(function).partition("\n")[0]
    return re.findall(r"(\w+):", signature)


def test_the_stub_names_everything_and_nothing_else():
    functions, values, _ = names(STUB.body)
    public = {name for name in vars(_native) if not name.startswith("_")}
    assert functions | values | set(CLASSES) == public
    assert functions | set(CLASSES) == {name for name in public if callable(getattr(_native, name))}
    assert set(CLASSES) == {name for name in public if inspect.isclass(getattr(_native, name))}


def test_the_stub_has_the_parameters_of_the_functions():
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            found = parameters_of(getattr(_native, node.name))
            assert [argument.arg for argument in node.args.args] == found


@pytest.mark.parametrize("name", CLASSES)
def test_the_stub_has_the_members_of_the_classes(name):
    functions, values, members = names(CLASSES[name].body)
    native = getattr(_native, name)
    public = {member for member in vars(native) if not member.startswith("_")}
    assert functions - {"__init__"} | values | members == public
    if members:
        assert members == set(native.__members__)
    else:
        assert functions - {"__init__"} == {m for m in public if callable(getattr(native, m))}


@pytest.mark.parametrize("name", CLASSES)
def test_the_stub_has_the_parameters_of_the_methods(name):
    for node in CLASSES[name].body:
        if isinstance(node, ast.FunctionDef):
            found = parameters_of(getattr(getattr(_native, name), node.name))
            if node.args.posonlyargs:  # which the native code numbers
                assert found == [f"arg{i}" for i in range(len(node.args.posonlyargs) - 1)]
            else:
                assert found == [argument.arg for argument in node.args.args[1:]]
