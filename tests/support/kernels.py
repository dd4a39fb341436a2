"""Running Triton kernels in tests: on a CUDA device, else in Triton's interpreter on the CPU."""

import contextlib
import importlib.util

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def kernels():
    """Let kernels run on the CPU where there is no CUDA device; skip where Triton is missing."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if DEVICE != "cpu":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        from triton.language import standard
        from triton.runtime import interpreter

        if not isinstance(standard.sum, interpreter.InterpretedFunction):
            pytest.skip("Triton was imported to compile; set TRITON_INTERPRET=1 for the process")
        original = interpreter._patch_lang_tensor

        def with_index(tensor, scope):
            # NumPy 2.4 no longer takes an array of one entry for a number
            original(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        patch.setattr(interpreter, "_patch_lang_tensor", with_index)
        yield


def needs_kernels(test):
    """Let a test run kernels; on a CUDA device it is one of those that need it."""
    test = pytest.mark.usefixtures("_kernels")(test)
    return test if DEVICE == "cpu" else pytest.mark.gpu(test)
