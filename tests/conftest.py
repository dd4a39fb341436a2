"""Before anything else: import Triton so that it can be interpreted, where nothing can run it.

Triton decides with its own import whether its library is interpreted, and torch may import it in
any test; whether a kernel is, is decided later, with the kernel's import.
"""

import importlib.util

import pytest


def _has_cuda() -> bool:
    import torch  # which the light lane does without

    return torch.cuda.is_available()


if importlib.util.find_spec("triton") is not None and not _has_cuda():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("triton")
