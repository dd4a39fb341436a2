"""Steps of a long benchmark, kept in a file so that an interrupted run goes on where it was."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tesseral.runtime.files import atomic_file


class Steps:
    """Results by name, plain values all of them.

    Parameters
    ----------
    file : Path or None
        Where they are kept; ``None`` keeps nothing.
    key : dict
        Plain values that must be the same for results to be used again, such as the machine.
    rooms : sequence of str
        Folders of the package whose code must be the same.
    """

    def __init__(self, file: Path | None, key: dict[str, Any], *rooms: str) -> None:
        self._file = file
        self._key = json.loads(json.dumps({**key, "code": _digest(rooms)}))
        self._found: dict[str, Any] = {}
        if file is not None and file.exists():
            record = json.loads(file.read_text(encoding="utf-8"))
            if record.get("key") == self._key:
                self._found = record["steps"]

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the result of that name, computed unless it is known."""
        if name not in self._found:
            self._found[name] = compute()
            if self._file is not None:
                record = {"key": self._key, "steps": self._found}
                with atomic_file(self._file, overwrite=True) as temporary:
                    temporary.write_text(json.dumps(record), encoding="utf-8")
        return self._found[name]

    def finish(self) -> None:
        """Forget everything: the run is complete."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)


def beside(json_file: Path | None) -> Path | None:
    """Return where the steps of a benchmark that writes this file are kept."""
    return None if json_file is None else json_file.with_name(json_file.name + ".steps")


def _digest(rooms: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for room in rooms:
        for file in sorted((package / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
