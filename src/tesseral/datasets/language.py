"""The embedded language model, and the books to calibrate and to test with."""

from pathlib import Path

from tesseral.core.constraints import check_parameter, choice
from tesseral.datasets._files import FOLDER, files_below, read_verified

_SPLIT = choice("calibration", "test")


def load_embedded_lm() -> Path:
    """Return the directory of lm-5m, the language model that ships with the package.

    A Llama of 5.5 million parameters in the format of transformers, trained from scratch on
    public-domain English books; its ``README.md`` says more.

    Returns
    -------
    Path
        To be read, not written: it lies inside the installed package.

    Raises
    ------
    DataError
        If one of its files is missing or damaged.

    Examples
    --------
    >>> (load_embedded_lm() / "config.json").is_file()
    True
    """
    for name in files_below("lm-5m"):
        read_verified(name)
    return FOLDER / "lm-5m"


def load_books_excerpt(split: str = "calibration") -> str:
    """Return public-domain books that the embedded model has not seen in training.

    Parameters
    ----------
    split : {"calibration", "test"}
        0.69 million or 0.35 million characters: 197 or 94 sequences of 1024 tokens of the
        embedded model. No book is in both.

    Raises
    ------
    ParameterError
        If ``split`` is neither.
    DataError
        If the installed file is missing or damaged.

    Examples
    --------
    >>> load_books_excerpt("test").splitlines()[0]
    'Title: Unveiling a Parallel'
    """
    check_parameter("load_books_excerpt", "split", split, _SPLIT)
    return read_verified(f"books/{split}.txt").decode("utf-8")
