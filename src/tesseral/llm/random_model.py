"""A model directory of random weights, to measure speed and memory with."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tesseral.llm.loading import quiet
from tesseral.runtime.files import atomic_directory


def write_random_llama(
    path: str | Path, tokenizer: str | Path, seed: int = 0, **shape: Any
) -> Path:
    """Write a Llama of normally distributed weights in bfloat16.

    Parameters
    ----------
    path : path
        Directory to make.
    tokenizer : path
        Model directory whose tokenizer it gets, for it to be whole; its vocabulary may be
        smaller.
    seed : int
        Fixes the weights.
    **shape
        Fields of transformers' ``LlamaConfig``.

    Raises
    ------
    OutputExistsError
        If ``path`` exists.
    """
    config = LlamaConfig(**shape, dtype=torch.bfloat16)
    with quiet(), torch.random.fork_rng(devices=[]), atomic_directory(path, overwrite=False) as new:
        torch.manual_seed(seed)
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(new)
        for file in Path(tokenizer).glob("tokenizer*"):
            shutil.copyfile(file, new / file.name)
    return Path(path)
