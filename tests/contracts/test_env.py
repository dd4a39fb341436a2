"""Every environment variable that the package reads is in its table, and the table has no other."""

import ast
import re
from pathlib import Path

import pytest

import tesseral
from tesseral.runtime.env import VARIABLES

SOURCES = sorted(Path(tesseral.__file__).parent.rglob("*.py"))
TABLE = "runtime/env.py"
NAMES = {variable.name for variable in VARIABLES}


def strings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def read_by_name(tree):
    """Names in os.environ[...], os.environ.get(...), os.getenv(...) and the like."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript):
            source, key = node.value, node.slice
        elif isinstance(node, ast.Call) and node.args:
            source, key = node.func, node.args[0]
        else:
            continue
        from_environment = re.search(r"\benviron\b|\bgetenv\b", ast.unparse(source))
        if from_environment and isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


def used(source):
    tree = ast.parse(source)
    ours = {text for text in strings(tree) if re.fullmatch(r"TESSERAL_[A-Z0-9_]+", text)}
    return ours | set(read_by_name(tree))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_variable_read_is_in_the_table(path):
    assert used(path.read_text(encoding="utf-8")) <= NAMES


def test_every_variable_in_the_table_is_read():
    others = [path for path in SOURCES if not path.as_posix().endswith(TABLE)]
    texts = {text for path in others for text in strings(ast.parse(path.read_text("utf-8")))}
    assert texts >= NAMES


def test_every_row_is_told_once_and_in_full():
    assert len(NAMES) == len(VARIABLES)
    assert all(variable.meaning and variable.default for variable in VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "os.environ['SOME_NAME']",
        "os.environ.get('SOME_NAME', '1')",
        "getenv('SOME_NAME')",
        "environ.setdefault('SOME_NAME', '0')",
        "NAME = 'TESSERAL_SOME_NAME'",
    ],
)
def test_a_read_of_any_form_is_found(source):
    assert used(source) - NAMES
