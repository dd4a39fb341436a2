"""Model directories with a tokenizer, as transformers writes them."""

import json
import string
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.models import VOCABULARY

TEXT = "It was the best of times, it was the worst of times. " * 20
"""1060 tokens of the tokenizer here: one for each character."""

PADDING = "<pad>"


def tokenizer(size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters; digits lie beyond the models' vocabulary."""
    characters = [PADDING, *string.ascii_letters, *" .,\n'-!?", *string.digits][:size]
    table = {character: index for index, character in enumerate(characters)}
    core = Tokenizer(models.WordLevel(table, unk_token=PADDING))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PADDING,
        eos_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def save(model, path: Path, **options) -> Path:
    """Write a model, as transformers' ``options`` say, and its tokenizer, and return where."""
    model.save_pretrained(path, **options)
    tokenizer().save_pretrained(path)
    return path


def save_precise(model, path: Path) -> Path:
    """Write a model in float64: an optimiser's step is as long for a slope of mere rounding."""
    return save(model.double(), path)


def change_config(path: Path, **changes) -> None:
    """Overwrite values of ``config.json``."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(path: Path, change) -> None:
    """Rewrite the weights as ``change`` leaves them, a function of the dictionary."""
    file = path / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def contents(path: Path) -> dict[str, bytes]:
    """Return every file below a directory, byte by byte."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Say whether two states have the same names, types and bits."""
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first
    )
