"""What a quantisation leaves beside its output until it is complete."""

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tesseral.quantization.calibration.ranks import Ranks
from tesseral.quantization.config import QuantizationConfig
from tesseral.runtime.files import atomic_directory, atomic_file

_HEADER = struct.Struct("<QQQ")  # samples, length, hidden


class Progress:
    """What is done so far, in a directory of its own: blocks, and what enters the next one.

    Every file is written under a temporary name and renamed, so that a killed run leaves only
    whole ones. A block counts as done once what enters the next one is there too. The
    directory is begun anew when it belongs to another model, text or configuration.

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
        _sweep(out, self.path)
        if not (resume and self._belongs_to(identity)):
            with atomic_directory(self.path, overwrite=True) as new:
                (new / "identity.json").write_text(json.dumps(identity), encoding="utf-8")

    def _belongs_to(self, identity: dict[str, Any]) -> bool:
        try:
            found = json.loads((self.path / "identity.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == identity)

    def n_done(self, kinds: Iterable[str]) -> int:
        """Return how many blocks are done and need not be run again.

        Parameters
        ----------
        kinds : iterable of str
            The kinds of hidden states that are needed to go on.
        """
        done = block = 0
        while self.block(block) is not None:
            block += 1
            if all(self.states(kind, block) is not None for kind in kinds):
                done = block
        return done

    def keep(self, kind: str, block: int, batches: Iterable[Tensor]) -> Tensor:
        """Write hidden states that enter a block, and return them mapped from the file.

        Parameters
        ----------
        kind : str
            What they are.
        block : int
            The block that they enter.
        batches : iterable of tensors of shape (batch, length, hidden)
            At least one. They are rounded to bfloat16.

        Returns
        -------
        bfloat16 tensor of shape (samples, length, hidden)
        """
        file = self._states_file(kind, block)
        rows, shape = 0, torch.Size()
        with self._whole(file) as temporary, temporary.open("wb") as target:
            target.write(bytes(_HEADER.size))
            for batch in batches:
                rows, shape = rows + len(batch), batch.shape[1:]
                rounded = batch.detach().to("cpu", torch.bfloat16).contiguous()
                target.write(rounded.view(torch.int16).numpy().tobytes())
            target.seek(0)
            target.write(_HEADER.pack(rows, *shape))
        states = self.states(kind, block)
        assert states is not None
        return states

    def states(self, kind: str, block: int) -> Tensor | None:
        """Return hidden states that were kept, ``None`` if they are not there."""
        file = self._states_file(kind, block)
        try:
            with file.open("rb") as source:
                shape = _HEADER.unpack(source.read(_HEADER.size))
            if file.stat().st_size != _HEADER.size + 2 * prod(shape):
                return None
        except (FileNotFoundError, struct.error):
            return None
        mapped = torch.from_file(
            str(file), size=_HEADER.size // 2 + prod(shape), dtype=torch.bfloat16
        )
        return mapped[_HEADER.size // 2 :].view(shape)

    def block(self, block: int) -> dict[str, Tensor] | None:
        """Return the tensors of a block, mapped from its file, ``None`` if it was not saved."""
        return _tensors(self._block_file(block))

    def blocks(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of all blocks that were saved, mapped from their files.

        Parameters
        ----------
        prefix : str
            Name of the list of blocks; the names start with it and the block's number.
        """
        files = sorted(self.path.glob("block-*.safetensors"))
        return {
            f"{prefix}.{number}.{name}": tensor
            for number, file in enumerate(files)
            for name, tensor in load_file(file).items()
        }

    def facts(self, block: int) -> dict[str, str]:
        """Return what was noted of a block that was saved."""
        return _noted(self._block_file(block))

    def save_learned(self, block: int, state: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Keep the tensors of a block whose norms may still be rescaled."""
        with self._whole(self._learned_file(block)) as temporary:
            save_file(state, temporary, metadata=facts)
        self._states_file("hidden", block).unlink(missing_ok=True)

    def learned(self, block: int) -> dict[str, Tensor] | None:
        """Return the tensors of such a block, mapped, ``None`` if it was not kept."""
        return _tensors(self._learned_file(block))

    def learned_facts(self, block: int) -> dict[str, str]:
        """Return what was noted of it."""
        return _noted(self._learned_file(block))

    def any_learned(self) -> bool:
        """Return whether an earlier run left such blocks."""
        return any(self.path.glob("learned-*.safetensors"))

    def save(self, block: int, state: dict[str, Tensor], facts: dict[str, str]) -> None:
        """Keep the tensors of a block, and forget what entered it."""
        with self._whole(self._block_file(block)) as temporary:
            save_file(state, temporary, metadata=facts)
        for file in self.path.glob(f"*-{block:04d}.bf16"):
            file.unlink()
        self._learned_file(block).unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget everything: the output is complete."""
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _whole(self, file: Path) -> Iterator[Path]:
        with disk_errors(self.path), atomic_file(file, overwrite=True) as temporary:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())

    def _block_file(self, block: int) -> Path:
        return self.path / f"block-{block:04d}.safetensors"

    def _learned_file(self, block: int) -> Path:
        return self.path / f"learned-{block:04d}.safetensors"

    def _states_file(self, kind: str, block: int) -> Path:
        return self.path / f"{kind}-{block:04d}.bf16"


def _tensors(file: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError):
        return None


def _noted(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata() or {})


class SharedProgress(Progress):
    """The same for several ranks of a machine: the first one writes, all read.

    Parameters
    ----------
    out, identity, resume
        As for :class:`Progress`.
    ranks : Ranks
        All of them make it and call its methods together.
    """

    def __init__(self, out: Path, identity: dict[str, Any], *, resume: bool, ranks: Ranks) -> None:
        self._ranks = ranks
        if ranks.rank == 0:
            super().__init__(out, identity, resume=resume)
        ranks.wait()
        if ranks.rank != 0:
            self.path = out.with_name(f".{out.name}.partial")

    def keep(self, kind: str, block: int, batches: Iterable[Tensor]) -> Tensor:
        """See :meth:`Progress.keep`; ranks that do not write compute all the same."""
        if self._ranks.rank == 0:
            super().keep(kind, block, batches)
        else:
            for _ in batches:  # whoever watches the block learns from it
                pass
        self._ranks.wait()
        states = self.states(kind, block)
        assert states is not None
        return states

    def save(self, block: int, state: dict[str, Tensor], facts: dict[str, str]) -> None:
        """See :meth:`Progress.save`."""
        if self._ranks.rank == 0:
            super().save(block, state, facts)
        self._ranks.wait()


def _sweep(out: Path, partial: Path) -> None:
    """Remove what killed runs left under temporary names."""
    for pattern in (f".{out.name}.new-*", f".{partial.name}.new-*", f"{partial.name}/.*.new-*"):
        for left in out.parent.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise a full disk as an ``OSError`` with a path: safetensors only names its number."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
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
