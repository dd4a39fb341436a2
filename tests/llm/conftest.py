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
