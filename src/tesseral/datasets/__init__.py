"""Data that comes with the package, data a user already has, and data with a planted truth.

Nothing here downloads anything, and nothing here imports torch: the embedded language
model is a directory, the texts are strings, everything else is NumPy arrays.
"""

from tesseral.datasets.block_tensor import BlockTensor, make_block_tensor
from tesseral.datasets.hcp import HCP, load_hcp
from tesseral.datasets.language import load_books_excerpt, load_embedded_lm
from tesseral.datasets.nations import Nations, load_nations
from tesseral.datasets.peru import Peru, load_peru
from tesseral.datasets.r_files import read_r
from tesseral.datasets.tensor_response import TensorResponse, make_tensor_response

__all__ = [
    "HCP",
    "BlockTensor",
    "Nations",
    "Peru",
    "TensorResponse",
    "load_books_excerpt",
    "load_embedded_lm",
    "load_hcp",
    "load_nations",
    "load_peru",
    "make_block_tensor",
    "make_tensor_response",
    "read_r",
]
