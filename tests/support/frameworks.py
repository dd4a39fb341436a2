"""The array frameworks that the same code must run on."""

import numpy as np
import pytest
import torch


def from_numpy_to_cuda(array):
    return torch.from_numpy(array).cuda()


def to_numpy(array):
    return array.cpu().numpy() if isinstance(array, torch.Tensor) else array


every_framework = pytest.mark.parametrize(
    "make",
    [
        pytest.param(np.asarray, id="numpy"),
        pytest.param(torch.from_numpy, id="torch"),
        pytest.param(
            from_numpy_to_cuda,
            id="cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
)
"""Run a test with ``make``, which turns a NumPy array into one of each framework."""
