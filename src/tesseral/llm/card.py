"""The model card of a checkpoint: what was done to the model, and what was measured of it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tesseral._errors import CheckpointError
from tesseral.quantization.config import OFF, QuantizationConfig
from tesseral.runtime.files import atomic_file

NAME = "README.md"
_MEASURED = "## Measured"
_NOT_YET = "Nothing yet: `tesseral eval MODEL --against ORIGINAL --card` writes it here."


def model_card(
    name: str,
    config: QuantizationConfig,
    facts: Sequence[Mapping[str, str]],
    sizes: tuple[int, int],
) -> str:
    """Return the card of a model that was just quantised.

    Parameters
    ----------
    name : str
        Of the original model.
    config : QuantizationConfig
        How it was quantised.
    facts : sequence of mappings
        What was noted of each block; see :class:`.resume.Progress`.
    sizes : pair of int
        Bytes of the original's and of this model's weight files.
    """
    keys, values = config.cache_bits
    head = "" if config.head_bits == OFF else f" The output embedding has {config.head_bits} bits."
    losses = [json.loads(block["loss"]) if "loss" in block else None for block in facts]
    calibration: list[str] = []
    if any(loss is not None for loss in losses):
        calibration = [
            "## Calibration",
            "",
            "Squared error of each block's output, relative to its power, after the last epoch.",
            "",
            *_table(["block", "loss"], ([str(i), _number(loss)] for i, loss in enumerate(losses))),
            "",
        ]
    mixed = " The widths of layers differ; these are the others'." if config.layers else ""
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {json.dumps(name)}",
        "tags: [tesseral, quantized]",
        "---",
        "",
        f"# {name}, quantised",
        "",
        f"Weights in {config.weight_bits} bits, inputs of linear layers in "
        f"{config.activation_bits}, cached keys in {keys} and values in {values}; 16 means that "
        f"they were left as they are. Transform `{config.transform}`, weights rounded by "
        f"`{config.rounding}`; all settings are in `config.json`.{mixed}{head}",
        "",
        "```python",
        "from tesseral.llm import load",
        "",
        'model, tokenizer = load("this directory")',
        "```",
        "",
        "`AutoModelForCausalLM.from_pretrained` reads it too, after `import tesseral.llm`.",
        "",
        "## Size",
        "",
        *_table(
            ["weight files", "bytes"], zip(("original", "this"), map(_grouped, sizes), strict=True)
        ),
        "",
        *calibration,
        _MEASURED,
        "",
        _NOT_YET,
    ]
    return "\n".join(lines) + "\n"


def write_measured(path: str | Path, words: str, columns: list[str], rows: list[list[str]]) -> None:
    """Write what was measured into the card of a checkpoint, in place of what stood there.

    Parameters
    ----------
    path : path
        The checkpoint.
    words : str
        On what it was measured.
    columns, rows
        A table.

    Raises
    ------
    CheckpointError
        If the checkpoint has no card of ours.
    """
    card = Path(path) / NAME
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    kept, found, _ = text.partition(f"\n{_MEASURED}\n")
    if not found:
        raise CheckpointError(f"{card} is no card that this package wrote; nothing was changed.")
    measured = "\n".join([words, "", *_table(columns, rows)])
    with atomic_file(card, overwrite=True) as new:
        new.write_text(f"{kept}{found}\n{measured}\n", encoding="utf-8")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _number(loss: Any) -> str:
    return "" if loss is None else f"{loss:.5f}"


def _grouped(count: int) -> str:
    return f"{count:,}"
