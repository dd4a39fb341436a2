"""What a quantisation leaves beside its output until it is complete."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tesseral.quantization.config import QuantizationConfig
from tesseral.runtime.files import atomic_directory, atomic_file


class Progress:
    """The blocks done so far, in a directory of their own.

    Each block is written under a temporary name and renamed, so that a killed run leaves
    only whole ones. The directory is begun anew when it belongs to another model, text or
    configuration.

    Parameters
    ----------
    out : Path
        The output that is being made; the directory stands beside it.
    identity : dict
        What the blocks depend on, as plain JSON values.
    resume : bool
        Whether to keep what an earlier run left.
    """

    def __init__(self, out: Path, identity: dict[str, Any], *, resume: bool) -> None:
        self.path = out.with_name(f".{out.name}.partial")
        if not (resume and self._belongs_to(identity)):
            with atomic_directory(self.path, overwrite=True) as new:
                (new / "identity.json").write_text(json.dumps(identity), encoding="utf-8")

    def _belongs_to(self, identity: dict[str, Any]) -> bool:
        try:
            found = json.loads((self.path / "identity.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == identity)

    def load(self, block: int) -> dict[str, Tensor] | None:
        """Return the tensors of a block that was done, ``None`` for one that was not."""
        try:
            return load_file(self._file(block))
        except (FileNotFoundError, SafetensorError):
            return None

    def save(self, block: int, state: dict[str, Tensor]) -> None:
        """Keep the tensors of a block."""
        with disk_errors(self.path), atomic_file(self._file(block), overwrite=True) as temporary:
            save_file(state, temporary)

    def remove(self) -> None:
        """Forget everything: the output is complete."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, block: int) -> Path:
        return self.path / f"block-{block:04d}.safetensors"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise a full disk as the ``OSError`` it is: safetensors only names its number."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def identity(model: Path, config: QuantizationConfig, text: str) -> dict[str, Any]:
    """Return what the result of a quantisation depends on, as plain JSON values."""
    files = {
        file.name: [file.stat().st_size, file.stat().st_mtime_ns]
        for file in sorted(model.iterdir())
        if file.is_file()
    }
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"model": str(model.resolve()), "files": files, "text": digest, **config.to_dict()}
