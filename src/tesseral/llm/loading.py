"""Reading model directories, with one clear message for each thing that can be wrong."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from tesseral._errors import CheckpointError
from tesseral.llm.attention_interface import IMPLEMENTATION


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
    ParameterError
        If its quantisation has unknown keys or an unknown version.
    """
    path = Path(path)
    config = read_config(path)
    if dtype is None:
        on_cpu = torch.device(device).type == "cpu"
        dtype = torch.float32 if on_cpu else getattr(torch, config.get("dtype") or "bfloat16")
    with _named_failures(path):
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=IMPLEMENTATION,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    _refuse_partial(path, report)
    return model.to(device).eval(), tokenizer


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


@contextmanager
def _named_failures(path: Path) -> Iterator[None]:
    """Turn failures of reading into ours."""
    try:
        with no_progress_bars():
            yield
    except SafetensorError as error:
        raise CheckpointError(f"{path}: the weights are damaged or cut off: {error}.") from None
    except OSError as error:
        first_line = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be read as a model: {first_line}") from None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own: ours tell the whole story."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _refuse_partial(path: Path, report: dict[str, Any]) -> None:
    """Refuse a directory whose weights do not fill the model: the rest would be random."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(kind) or ()))
        if names:
            raise CheckpointError(
                f"{path}: the weights do not fit config.json: {len(names)} "
                f"{kind.replace('_', ' ')}, among them {names[0]}."
            )
