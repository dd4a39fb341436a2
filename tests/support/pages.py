"""Pages of documentation: their code blocks, the commands they show, and running them."""

import ast
import importlib
import os
import re
import shlex
import warnings
from pathlib import Path

from support.forked import run, run_script


def blocks(text, language):
    """Return the lines of every fenced block in a language, with their line numbers from 1."""
    found, inside = [], None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            inside = None if inside is not None else line[3:].strip()
        elif inside == language:
            found.append((number, line))
    return found


def pieces(text, language):
    """Return every fenced block in a language, whole."""
    found, last = [], None
    for number, line in blocks(text, language):
        if last is None or number > last + 1:
            found.append([])
        found[-1].append(line)
        last = number
    return ["\n".join(lines) for lines in found]


def languages(text):
    """Return the language of every fenced block."""
    return [line[3:].strip() for line in text.splitlines() if line.startswith("```")][::2]


def unknown_names(text):
    """Return what the imports in text blocks name and the package lacks.

    Such blocks need a server, several processes or a large package. Tests that have those run
    most of them; one that imports must at least be Python.
    """
    missing = []
    for piece in pieces(text, "text"):
        if not piece.startswith(("from ", "import ")):
            continue
        for node in ast.walk(ast.parse(piece)):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "tesseral":
                module = importlib.import_module(node.module)
                missing += [a.name for a in node.names if not hasattr(module, a.name)]
    return missing


def command_lines(text, program):
    """Return every call of a program in a console block, without its comment."""
    lines = [shlex.split(line, comments=True) for _, line in blocks(text, "console")]
    return [words[1:] for words in lines if words and words[0] == program]


def named(text, program):
    """Return every name that stands after a program in a console block or inside backticks."""
    quoted = re.findall(rf"`{program} ([a-z]\w*)[^`]*`", text)
    return {*quoted, *(words[0] for words in command_lines(text, program))}


def run_in_order(text, language, folder):
    """Run the blocks of a page as one program, and hold what they print to what they promise.

    Each line keeps its number, so that a traceback points into the page.
    """
    lines = dict(blocks(text, language))
    assert lines
    script = folder / "page.py"
    script.write_text("\n".join(lines.get(n, "") for n in range(1, max(lines) + 1)), "utf-8")
    (code,), (output,), (error,) = run(_run_page, [(str(script),)])
    assert code == 0, error
    printed = iter(output.splitlines())
    for promised in re.findall(r"^print\(.*\)  # (.+)$", "\n".join(lines.values()), re.MULTILINE):
        assert promised in printed, f"{promised!r} is not in its place in:\n{output}"


def _run_page(script):
    os.chdir(Path(script).parent)
    os.environ["MPLBACKEND"] = "agg"
    warnings.simplefilter("error")
    run_script(script)
