"""What quantising a model needs of memory and disk, known before it starts."""

import errno
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import PreTrainedModel

from tesseral._errors import MemoryWarning
from tesseral.llm.layouts import blocks_of
from tesseral.quantization.calibration.gains import SEQUENCES
from tesseral.quantization.config import OFF as DENSE
from tesseral.quantization.config import QuantizationConfig

_FLOAT = 4
_OVERHEAD = 128 << 20  # of libraries at work

# copies in float32, measured with the calibration of random Llamas of several shapes: of a
# block's weights, and of a token's channels outside and inside of the MLP
_LEARNING = (9, 30, 11)
_FREEZING = (3, 8, 4)
_GPTQ = 12  # of the largest matrix of second moments
_STARTING = 10  # the same, beside the moments of all inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run needs at most.

    Attributes
    ----------
    memory_bytes : int
        One block with what is learned of it, one batch, and the hidden states that norms are
        rescaled on. Weights outside of blocks and hidden states of the text are mapped from
        files and not counted: the system may drop them at any time.
    disk_bytes : int
        Hidden states before and after a block, and twice the quantised model: its blocks
        until all are done, and the output.
    """

    memory_bytes: int
    disk_bytes: int

    def at_once(self, blocks: int, states: int, *, on_cpu: bool) -> "Budget":
        """Return what as many blocks in work at once need.

        Parameters
        ----------
        blocks : int
            How many.
        states : int
            Numbers in the hidden states of the whole text.
        on_cpu : bool
            Whether they share the memory.
        """
        return Budget(
            memory_bytes=self.memory_bytes * (blocks if on_cpu else 1),
            disk_bytes=self.disk_bytes + (blocks - 1) * states * torch.bfloat16.itemsize,
        )


def budget(model: PreTrainedModel, config: QuantizationConfig, samples: int, length: int) -> Budget:
    """Return what quantising a model needs.

    Parameters
    ----------
    model : transformers model
        Its weights are not read.
    config : QuantizationConfig
        What to do.
    samples, length : int
        Shape of the calibration sequences.
    """
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
    text = model.config.get_text_config()
    hidden, inner = text.hidden_size, inner_size(text)
    weights, outside, inside = _LEARNING if config.learns else _FREEZING
    tokens = min(config.batch_size, samples) * length
    memory = max(sizes) * weights + tokens * (hidden * outside + inner * inside)
    rescaled = min(samples, SEQUENCES)
    if config.rescales:
        memory += 4 * rescaled * length * hidden
    memory += _squares(config, hidden, inner)
    kept = samples + (samples if config.propagate else rescaled)
    states = 2 * kept * length * hidden * torch.bfloat16.itemsize
    bits = 32 if config.weight_bits == DENSE else 1.25 * max(config.weight_bits, 4)
    head = 0 if config.head_bits == DENSE else text.vocab_size * hidden
    others = sum(p.nbytes for p in model.parameters()) - sum(
        p.nbytes for p in blocks_of(model).parameters()
    )
    return Budget(
        memory_bytes=_OVERHEAD + _FLOAT * memory,
        disk_bytes=states + int(2 * sum(sizes) * bits / 8) + others + 2 * head,
    )


def _squares(config: QuantizationConfig, hidden: int, inner: int) -> int:
    """Return the numbers in matrices of second moments: at the start, or in GPTQ after it."""
    largest = max(hidden, inner) ** 2
    gptq = _GPTQ * largest if config.rounding == "gptq" else 0
    if config.start != "moments" or "transforms" not in config.learned:
        return gptq
    return max(gptq, _STARTING * largest + 2 * (3 * hidden**2 + inner**2))


def hidden_size(model: PreTrainedModel) -> int:
    """Return the width of hidden states."""
    return int(model.config.get_text_config().hidden_size)


def check(needed: Budget, out: Path, device: torch.device) -> None:
    """Refuse a run that the disk cannot hold; warn of one that memory may not.

    Raises
    ------
    OSError
        If less is free on the disk than the run needs.

    Warns
    -----
    MemoryWarning
        If the block in work is in main memory and less is available.
    """
    place = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed.disk_bytes:
        raise OSError(
            errno.ENOSPC,
            f"the run needs {_gb(needed.disk_bytes)} and {_gb(free)} are free; give fewer "
            "samples, shorter sequences, or another place",
            str(out),
        )
    available = psutil.virtual_memory().available
    if device.type == "cpu" and available < needed.memory_bytes:
        warnings.warn(
            f"quantize: the run may need {_gb(needed.memory_bytes)} of memory and "
            f"{_gb(available)} are available; a smaller batch_size or sequence_length needs less.",
            MemoryWarning,
            stacklevel=3,
        )


def inner_size(config: Any) -> int:
    """Return the channels that a token has inside of the MLP, of all experts that it chooses."""
    experts = getattr(config, "num_experts_per_tok", None) or 1
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return max(int(inner) * int(experts), int(config.intermediate_size))


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
