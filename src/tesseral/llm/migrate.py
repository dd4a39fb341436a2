"""Older checkpoints of ours, rewritten in the present version; nothing is quantised anew."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from tesseral._errors import CheckpointError
from tesseral.llm.loading import read_config
from tesseral.llm.quantizer import METHOD
from tesseral.llm.resume import disk_errors
from tesseral.quantization.config import VERSION
from tesseral.runtime.files import atomic_directory, check_output

_LAYER_OF_1 = re.compile(
    r"(model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj))\.weight"
)


def migrate(path: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Rewrite a checkpoint of an older version of our format in the present one.

    Parameters
    ----------
    path : path
        Directory that an older version of this package wrote; it is only read.
    out : path
        Directory to make.
    overwrite : bool
        Replace ``out`` if it exists.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    CheckpointError
        If the directory is not in our format, is damaged, or has no older version.
    OutputExistsError
        If ``out`` exists and is not to be replaced.
    """
    path, out = Path(path), check_output(out, overwrite=overwrite)
    description = read_config(path)
    version = _version(path, description)
    with disk_errors(out), atomic_directory(out, overwrite=overwrite) as new:
        for file in sorted(path.iterdir()):
            if file.suffix == ".safetensors":
                save_file(_renewed(_tensors(file), version), new / file.name, {"format": "pt"})
            elif file.is_file():
                shutil.copyfile(file, new / file.name)
        if (new / SAFE_WEIGHTS_INDEX_NAME).exists():
            _write_index(new)
        description["quantization_config"]["version"] = VERSION
        (new / "config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return out


def _version(path: Path, description: Mapping[str, Any]) -> int:
    ours = description.get("quantization_config")
    if not isinstance(ours, dict) or ours.get("quant_method") != METHOD:
        raise CheckpointError(f"{path} is no checkpoint of this package's; nothing to migrate.")
    version = ours.get("version", 1)
    if version == VERSION:
        raise CheckpointError(f"{path} has version {VERSION} already; nothing to migrate.")
    if version not in _STEPS:
        raise CheckpointError(
            f"{path} has version {version!r}; known are {', '.join(map(str, _STEPS))} and "
            f"{VERSION}: a newer version of this package may read it."
        )
    return int(version)


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file}: the weights are damaged or cut off: {error}.") from None


def _renewed(tensors: dict[str, Tensor], version: int) -> dict[str, Tensor]:
    for step in range(version, VERSION):
        tensors = _STEPS[step](tensors)
    return tensors


def _from_1(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give weights the names that only this package reads, and leave the old ones empty."""
    renewed = {}
    for name, tensor in tensors.items():
        layer = _LAYER_OF_1.fullmatch(name)
        if layer is None:
            renewed[name] = tensor
        else:
            packed = tensor.dtype == torch.uint8
            renewed[f"{layer[1]}.weight_{'codes' if packed else 'values'}"] = tensor
            renewed[name] = torch.empty(0)
    return renewed


_STEPS: Mapping[int, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {1: _from_1}
"""What turns the tensors of a version into those of the next."""


def _write_index(path: Path) -> None:
    """Write anew which file holds which tensor."""
    file = path / SAFE_WEIGHTS_INDEX_NAME
    index = json.loads(file.read_text(encoding="utf-8"))
    index["weight_map"] = {
        name: shard.name
        for shard in sorted(path.glob("*.safetensors"))
        for name in load_file(shard)
    }
    file.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
