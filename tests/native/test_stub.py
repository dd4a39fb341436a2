"""The hand-written stub of the native module says what the module says."""

import ast
import inspect
import re
from pathlib import Path

import tesseral
from tesseral import _native

STUB = ast.parse((Path(tesseral.__file__).parent / "_native.pyi").read_text(encoding="utf-8"))


def test_the_stub_names_everything_and_nothing_else():
    functions = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    public = {name for name in vars(_native) if not name.startswith("_")}
    assert functions | values == public
    assert functions == {name for name in public if callable(getattr(_native, name))}


def test_the_stub_has_the_parameters_of_the_functions():
    for node in STUB.body:
        if isinstance(node, ast.FunctionDef):
            signature = inspect.getdoc(getattr(_native, node.name)).partition("\n")[0]
            parameters = re.findall(r"(\w+):", signature)
            assert [argument.arg for argument in node.args.args] == parameters
