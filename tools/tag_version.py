"""The version of a build, from the last tag: read by scikit-build-core, needs nothing but git.

On the tag ``v1.2.3`` it is ``1.2.3``; three commits later ``1.2.4.dev3+gabc1234``. A source
archive has the version it was made with in ``PKG-INFO``. Elsewhere it is :data:`UNTAGGED`.
"""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNTAGGED = "0.1.0.dev0"
_DESCRIBED = re.compile(r"v(\d+(?:\.\d+)*)\.(\d+)-(\d+)-g([0-9a-f]+)")


def dynamic_metadata(field: str, settings: Mapping[str, object] | None = None) -> str:
    """Return the version; how scikit-build-core asks for it."""
    if field != "version" or settings:
        raise ValueError("tag_version gives the version, and has no settings")
    return version(ROOT)


def version(root: Path) -> str:
    """Return the version of the sources in a directory."""
    archived = root / "PKG-INFO"
    if archived.is_file():
        found = re.search(r"^Version: (.+)$", archived.read_text("utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return _of_tag(_git(root, "describe", "--tags", "--long", "--match", "v[0-9]*"), root)


def _of_tag(described: str, root: Path) -> str:
    found = _DESCRIBED.fullmatch(described)
    if not found or Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
        return UNTAGGED
    before, last, distance, commit = found.groups()
    if distance == "0":
        return f"{before}.{last}"
    return f"{before}.{int(last) + 1}.dev{distance}+g{commit}"


def _git(root: Path, *words: str) -> str:
    """Return what git says, nothing if it says no or is not there."""
    try:
        run = subprocess.run(
            # containers that build wheels see the sources of another user
            ["git", "-c", "safe.directory=*", *words],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()
