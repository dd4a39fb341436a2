"""Shared multilinear algebra; NumPy and torch arrays run the same code.

The estimators' base is apart, in :mod:`tesseral.core.estimator`, because it needs
scikit-learn.
"""

from tesseral.core.blocks import block_means, block_sums, expand_blocks
from tesseral.core.coo import CooTensor
from tesseral.core.kronecker import balanced_factors, kronecker_apply
from tesseral.core.labels import membership_matrix
from tesseral.core.linalg import (
    fix_signs,
    leading_eigenvectors,
    left_singular_vectors,
    mode_gram,
    orthonormality_error,
    randomized_svd,
    truncated_svd,
)
from tesseral.core.modeprod import contraction_order, mode_product, multi_mode_product
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import pack, unpack
from tesseral.core.random import as_generator, spawn, standard_normal
from tesseral.core.stopping import Progress, Reason, Result, StoppingRule
from tesseral.core.tucker import TuckerTensor, hooi, hosvd
from tesseral.core.unfold import fold, unfold

__all__ = [
    "CooTensor",
    "PackedTensor",
    "Progress",
    "Reason",
    "Result",
    "StoppingRule",
    "TuckerTensor",
    "as_generator",
    "balanced_factors",
    "block_means",
    "block_sums",
    "contraction_order",
    "expand_blocks",
    "fix_signs",
    "fold",
    "hooi",
    "hosvd",
    "kronecker_apply",
    "leading_eigenvectors",
    "left_singular_vectors",
    "membership_matrix",
    "mode_gram",
    "mode_product",
    "multi_mode_product",
    "orthonormality_error",
    "pack",
    "randomized_svd",
    "spawn",
    "standard_normal",
    "truncated_svd",
    "unfold",
    "unpack",
]
