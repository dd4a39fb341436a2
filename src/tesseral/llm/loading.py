"""Reading model directories, with one clear message for each thing that can be wrong."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from tesseral._errors import (
    CheckpointError,
    ParameterError,
    TesseralError,
    UnsupportedModelError,
)
from tesseral.llm.attention_interface import IMPLEMENTATION
from tesseral.llm.weight_memory import gather_weights


def load(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a model directory, quantised or not, with its tokenizer.

    Parameters
    ----------
    path : path
        Directory in transformers' format with safetensors weights; weights in any other
        format, pickles among them, are never read.
    dtype : torch.dtype, optional
        Type of what is not quantised. By default float32 on the CPU, elsewhere the type in
        the directory's configuration. Scales and transforms keep their own.
    device : str or torch.device
        Where to put the model.

    Returns
    -------
    model, tokenizer
        The model in evaluation mode, attending through :mod:`tesseral.attention`.

    Raises
    ------
    CheckpointError
        If the directory is missing, incomplete or damaged.
    UnsupportedModelError
        If it is no causal language model that transformers knows; code in the directory is
        never run.
    ParameterError
        If its quantisation has unknown keys or an unknown version, or there is no such device.
    """
    path, device = Path(path), usable_device(device)
    model = mapped_model(path, dtype_on(device, path) if dtype is None else dtype).to(device)
    settle(model)
    return model, read_tokenizer(path)


def dtype_on(device: torch.device, path: Path) -> torch.dtype:
    """Return the type that a model directory's numbers get on a device, if none is asked for.

    Raises
    ------
    CheckpointError
        If the directory's configuration is missing or names none.
    """
    stored = stored_dtype(path, read_config(path))
    return torch.float32 if device.type == "cpu" else stored


def mapped_model(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model in a directory; numbers that have this type there stay in the files.

    Errors are those of :func:`load`.
    """
    _check_architecture(path, read_config(path)["model_type"])
    with named_failures(path, "model"):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            # they are in the report, and refused with it
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    refuse_partial(path, report)
    found: PreTrainedModel = model.eval()
    return found


def settle(model: PreTrainedModel) -> None:
    """Put the packed weights of a model on the CPU where they are read fast, for good."""
    if model.device.type == "cpu" and getattr(model, "is_quantized", False):
        gather_weights(model)


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device, once it is sure that tensors can be put there.

    Raises
    ------
    ParameterError
        If torch knows no such device or cannot use it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = shorten(str(error), 120)
        raise ParameterError(f"device {str(device)!r} cannot be used here: {reason}.") from None
    return found


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a model directory.

    Raises
    ------
    CheckpointError
        If there is none or it is damaged.
    """
    try:
        with named_failures(path, "tokenizer"):
            return AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
    except CheckpointError:
        if not path.is_dir() or any(path.glob("*token*")):
            raise
        raise CheckpointError(
            f"{path}: there is no tokenizer; copy its files, such as tokenizer.json and "
            "tokenizer_config.json, into the directory."
        ) from None


def read_config(path: Path) -> dict[str, Any]:
    """Return ``config.json`` of a model directory.

    Raises
    ------
    CheckpointError
        If there is no such directory or file, or it does not describe a model.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such model directory.")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: not a model directory, it has no config.json; a directory in "
            "transformers' format is expected."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path}/config.json is damaged: {error}.") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{path}/config.json names no model_type.")
    return config


def stored_dtype(path: Path, description: dict[str, Any]) -> torch.dtype:
    """Return the type of weights that a model directory's configuration names.

    Raises
    ------
    CheckpointError
        If it is none.
    """
    name = description.get("dtype") or description.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{path}/config.json names {name!r} as dtype, which is none.")
    return dtype


def _check_architecture(path: Path, model_type: str) -> None:
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedModelError(
            f"{path}: {model_type!r} is no causal language model that transformers "
            f"{transformers.__version__} knows."
        )


@contextmanager
def named_failures(path: Path, what: str) -> Iterator[None]:
    """Turn failures of reading into ours."""
    try:
        with quiet():
            yield
    except SafetensorError as error:
        raise CheckpointError(f"{path}: the weights are damaged or cut off: {error}.") from None
    except (TesseralError, MemoryError):
        raise
    except Exception as error:  # a damaged directory fails anywhere inside transformers
        reason = shorten(str(error), 300)
        raise CheckpointError(f"{path}: the {what} cannot be read: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from bars and reports of its own: ours tell the whole story."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def refuse_partial(path: Path, report: dict[str, Any]) -> None:
    """Refuse a directory whose weights do not fill the model: the rest would be random.

    Raises
    ------
    CheckpointError
        If ``report``, transformers' of a load, names tensors that are missing, left over or
        of another shape.
    """
    for kind in ("missing", "unexpected", "mismatched"):
        names = sorted(map(str, report.get(f"{kind}_keys") or ()))
        if names:
            raise CheckpointError(
                f"{path}: the weights do not fit config.json; {kind} tensors: {len(names)}, "
                f"among them {names[0]}."
            )
