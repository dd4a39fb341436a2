"""Weights with transforms folded in compute what they computed before."""

import pytest
import torch

from tesseral.quantization.fusion import fuse_heads, fuse_input, fuse_norm, fuse_scale
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


VALUES = slice(HEAD_DIM, (1 + HEADS) * HEAD_DIM)
"""Rows that are heads of values, between others as in a layer that makes queries and keys too."""

WHERE = [slice(0, (2 + HEADS) * HEAD_DIM), VALUES, slice(VALUES.start, (2 + HEADS) * HEAD_DIM)]


def layer_and_input():
    rows = (2 + HEADS) * HEAD_DIM
    return normal(rows, IN), normal(rows, seed=1), normal(5, IN, seed=4)


@pytest.mark.parametrize("rows", WHERE, ids=str)
def test_a_layer_turns_each_head_of_values_and_nothing_else(rows):
    weight, bias, x = layer_and_input()
    per_head = normal(HEAD_DIM, HEAD_DIM, seed=2)
    expected = x @ weight.mT + bias
    heads = expected[:, rows].reshape(5, -1, HEAD_DIM) @ per_head
    expected[:, rows] = heads.flatten(1)
    got = x @ fuse_heads(weight, per_head, rows).mT + fuse_heads(bias, per_head, rows)
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("rows", WHERE, ids=str)
def test_a_layer_scales_some_channels_and_nothing_else(rows):
    weight, bias, x = layer_and_input()
    scale = normal(rows.stop - rows.start, seed=3).exp()
    expected = x @ weight.mT + bias
    expected[:, rows] *= scale
    got = x @ fuse_scale(weight, scale, rows).mT + fuse_scale(bias, scale, rows)
    assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norm_scales_its_channels_whatever_it_adds_to_its_weight(offset):
    x, weight, scale = normal(5, IN), normal(IN, seed=1), normal(IN, seed=2).exp()
    got = x * (fuse_norm(weight, scale, offset) + offset)
    assert torch.allclose(got, x * (weight + offset) * scale, atol=1e-12)
