"""The map in ARCHITECTURE.md is the tree as it is."""

import re
from pathlib import Path

import tesseral

ROOT = Path(__file__).parents[2]
PACKAGE = Path(tesseral.__file__).parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MAP = next(block for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL) if "src/" in block)


def paths_on_the_map():
    """Yield every path; an entry lies in the folder that is indented by less, two columns wide."""
    folders = [ROOT]
    for line in MAP.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(r" {2,}", line.strip())[0].split()
        del folders[depth + 1 :]
        yield from (folders[depth] / name for name in names)
        folders.append(folders[depth] / names[-1])


def test_everything_on_the_map_exists():
    missing = [path for path in paths_on_the_map() if not path.exists()]
    assert missing == []


def test_every_source_file_is_on_the_map_or_in_a_folder_that_stands_for_its_files():
    named = set(paths_on_the_map())
    # a folder whose files are named one by one does not stand for the others
    whole = {path for path in named if path.is_dir() and not any(path in n.parents for n in named)}
    sources = {path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    sources |= set((ROOT / "native").rglob("*.cpp"))
    left = {path for path in sources - named if whole.isdisjoint(path.parents)}
    assert sorted(path.relative_to(ROOT).as_posix() for path in left) == []
