"""Importing optional dependencies with one clear message when they are missing."""

import importlib
from types import ModuleType

from tesseral._errors import MissingExtraError


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra of this package brings it.

    Parameters
    ----------
    module : str
        Name of the module to import.
    extra : str
        The extra of this package that installs it.
    purpose : str
        What needs it; starts the message.

    Raises
    ------
    MissingExtraError
        If the module is not installed. An installed module that fails to import raises
        its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{purpose} needs {error.name}, which is not installed: "
            f"pip install 'tesseral[{extra}]'."
        ) from None
