import logging
from pathlib import Path

import pytest
import torch

from support.checkpoints import save
from support.models import tiny_llama

# products of tiny matrices: more threads would only wait for one another
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    """A directory with a tiny Llama, for reading only."""
    return save(tiny_llama(), tmp_path_factory.mktemp("models") / "original")


@pytest.fixture
def said(capfd, monkeypatch):
    """A function that returns all that was printed or logged by transformers so far."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [handler])
    return lambda: "".join([*capfd.readouterr(), *(record.getMessage() for record in records)])
