"""What commands are given alike: a model, a text, the extra they need, whether to replace."""

from pathlib import Path
from typing import Annotated

import typer

from tesseral._errors import DataError
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.runtime.extras import require

EMBEDDED = "embedded"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=f"Model directory, or the word {EMBEDDED} for the one in the package.",
        show_default=False,
    ),
]

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.", show_default=False)]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")]

Device = Annotated[str, typer.Option(help="Where the model is: cpu or cuda.")]

RANK_DEFAULT = "cpu; of ranks of torchrun cuda, if each has a device"
"""Where commands compute that may be started by torchrun, if nothing is said."""


def require_llm(command: str) -> None:
    """Say which extra to install if language models cannot be run.

    Raises
    ------
    MissingExtraError
        If torch or transformers is missing.
    """
    for module in ("torch", "transformers"):
        require(module, extra="llm", purpose=f"tesseral {command}")


def model_directory(model: str) -> Path:
    """Return the directory that a command's ``MODEL`` means."""
    return load_embedded_lm() if model == EMBEDDED else Path(model)


def text_to_use(file: Path | None, split: str) -> str:
    """Return the text in ``file``, or the excerpt in the package, and say so on stderr.

    Raises
    ------
    DataError
        If the file cannot be read, or is not UTF-8.
    """
    if file is None:
        typer.echo(f"no --text given: using the {split} excerpt in the package", err=True)
        return load_books_excerpt(split)
    return read_text(file)


def read_text(file: Path) -> str:
    """Return what is in a file of a user's.

    Raises
    ------
    DataError
        If it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 text: byte {error.start} cannot be read; convert it first."
        ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from None
