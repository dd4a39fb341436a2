"""A model directory whose blocks come into memory one at a time."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from tesseral._errors import CheckpointError
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.layouts import blocks_of
from tesseral.llm.loading import named_failures, read_config, refuse_partial, stored_dtype

# a decoder's; the encoder of a model that sees images is not quantised
_BLOCK = re.compile(r"(?:^|\.)(?<!encoder\.)layers\.(\d+)\.")


class LazyModel:
    """A model whose decoder blocks are read when they are asked for, and given up afterwards.

    Everything outside of the blocks is mapped from the files, in the type that it has there.
    Opening reads no weights, but refuses a directory whose weights do not fill the model.

    Parameters
    ----------
    path : Path
        Directory in transformers' format with safetensors weights; it is only read.

    Attributes
    ----------
    model : transformers model
        In evaluation mode, under our attention. Its blocks are on torch's ``meta`` device.

    Raises
    ------
    CheckpointError
        If the directory is missing, incomplete or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        dtype = stored_dtype(path, read_config(path))
        with named_failures(path, "model"):
            config = AutoConfig.from_pretrained(path, **_OWN_CODE_ONLY)
            with torch.device("meta"):
                self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                    config, dtype=dtype, attn_implementation=IMPLEMENTATION
                )
            self.model.eval()
            _compute_buffers(self.model, self.model)
            if (path / GENERATION_CONFIG_NAME).exists():
                self.model.generation_config = GenerationConfig.from_pretrained(
                    path, local_files_only=True
                )
            files: list[Any] = [safe_open(file, "pt") for file in _weight_files(path)]
            self._tensors = {n: file.get_slice(n) for file in files for n in file.keys()}  # noqa: SIM118
            self._check()
            self._fill([name for name in self._tensors if _BLOCK.search(name) is None], "cpu")
            self.model.requires_grad_(False)
            self.model.tie_weights()

    def read_block(self, index: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Return a block with its weights on a device, in the type asked for."""
        block: nn.Module = blocks_of(self.model)[index].to(dtype)
        names = [n for n in self._tensors if (m := _BLOCK.search(n)) and int(m[1]) == index]
        with named_failures(self._path, "model"):
            self._fill(names, device)
        return block.requires_grad_(False)

    def outside(self) -> dict[str, Tensor]:
        """Return what does not belong to a block, by name, without what is tied to it."""
        return {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if name not in self.model.all_tied_weights_keys and _BLOCK.search(name) is None
        }

    def _check(self) -> None:
        """Go through all weights as when they are read, on a device that reads nothing."""
        found = self._fill(list(self._tensors), "meta")
        self.model._adjust_missing_and_unexpected_keys(found)
        found.missing_keys -= self.model.all_tied_weights_keys.keys()
        refuse_partial(self._path, found.to_dict())

    def _fill(self, names: list[str], device: torch.device | str) -> Any:
        """Put weights into the model as transformers does, fusing or renaming what it does."""
        found, _ = convert_and_load_state_dict_in_model(
            model=self.model,
            state_dict={name: self._tensors[name] for name in names},
            load_config=LoadStateDictConfig(
                device_map={"": device}, weight_mapping=get_model_conversion_mapping(self.model)
            ),
        )
        return found


_OWN_CODE_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _weight_files(path: Path) -> list[Path]:
    """Return the files that hold the weights; only safetensors are looked for.

    Raises
    ------
    CheckpointError
        If there are none, or the index of several is damaged.
    """
    if (path / SAFE_WEIGHTS_NAME).exists():
        return [path / SAFE_WEIGHTS_NAME]
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        raise CheckpointError(
            f"{path}: the model cannot be read: there is no file named {SAFE_WEIGHTS_NAME} or "
            f"{SAFE_WEIGHTS_INDEX_NAME}; weights in other formats are never read."
        )
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged: {error}.") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_file():
            raise CheckpointError(f"{path}: the weights are incomplete: there is no file {name!r}.")
    return [path / name for name in sorted(names)]


@torch.no_grad()
def _compute_buffers(module: nn.Module, model: PreTrainedModel) -> None:
    """Give values to what transformers computes and does not store, such as frequencies.

    How to compute it is known to the innermost model that a module is part of.
    """
    model = module if isinstance(module, PreTrainedModel) else model
    present = [n for n in module._non_persistent_buffers_set if module._buffers[n] is not None]
    for name in present:
        module._buffers[name] = torch.empty_like(module.get_buffer(name), device="cpu")
    if present:
        model._init_weights(module)
    for child in module.children():
        _compute_buffers(child, model)
