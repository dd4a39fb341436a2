"""Weights with transforms folded in compute what they computed before."""

import pytest
import torch

from tesseral.quantization.fusion import fuse_input, fuse_output
from tesseral.quantization.transforms.kronecker import Kronecker

HEADS, HEAD_DIM, IN = 3, 4, 6


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_weight_reads_the_scaled_and_transformed_input(scaled):
    transform = Kronecker.from_factors([normal(2, 2), normal(3, 3)])
    x, weight = normal(5, IN), normal(7, IN, seed=1)
    scale = normal(IN, seed=2).exp() if scaled else None
    fused = fuse_input(weight, transform, scale)
    read = transform.apply(x if scale is None else x * scale)
    assert torch.allclose(read @ fused.mT, x @ weight.mT, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_writes_each_head_turned_and_each_channel_scaled(turned, scaled):
    weight, bias = normal(HEADS * HEAD_DIM, IN), normal(HEADS * HEAD_DIM, seed=1)
    per_head = normal(HEAD_DIM, HEAD_DIM, seed=2) if turned else None
    scale = normal(HEADS * HEAD_DIM, seed=3).exp() if scaled else None
    x = normal(5, IN, seed=4)
    expected = (x @ weight.mT + bias).reshape(5, HEADS, HEAD_DIM)
    expected = (expected if per_head is None else expected @ per_head).flatten(1)
    expected = expected if scale is None else expected * scale
    got = x @ fuse_output(weight, per_head, scale).mT + fuse_output(bias, per_head, scale)
    assert torch.allclose(got, expected, atol=1e-12)
