"""With all rounding off, no placement of a transform changes what a model says."""

import pytest
import torch

from support.models import token_ids
from support.quantised import MODELS, freeze, installed, logits_of, no_rounding, simulate, tiny
from tesseral.quantization.config import TRANSFORMS
from tesseral.quantization.placement import (
    CODEC,
    INPUT_SITES,
    ROLES,
    BlockShape,
    site_of,
)

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}
PLACEMENTS = [*(site.name for site in INPUT_SITES), CODEC]
SHAPE = BlockShape(hidden=12, intermediate=35, n_heads=4, n_kv_heads=2, head_dim=6)
IDS = token_ids(2, 9)


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


def tolerance_of(name, dtype):
    """Gemma's norms read their weights in float32, whatever the model's type."""
    return TOLERANCE[torch.float32] if name.startswith("gemma") else TOLERANCE[dtype]


def check_agreement(name, dtype, transform, only=None):
    """Compare a model with its simulated and with its frozen transformed form."""
    n_blocks = 2 if only is None else 1
    model, config = tiny(name, dtype, num_hidden_layers=n_blocks), no_rounding(transform)
    expected = logits_of(model, IDS)
    tolerance = tolerance_of(name, dtype)
    assert expected.dtype == dtype
    simulated = simulate(model, config, only=only)
    with installed(simulated):
        assert relative(logits_of(model, IDS), expected) < tolerance
    assert torch.equal(logits_of(model, IDS), expected), "the block was not put back"
    freeze(model, config, simulated)
    assert relative(logits_of(model, IDS), expected) < tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", MODELS)
def test_all_placements_together_change_nothing(name, transform, dtype):
    check_agreement(name, dtype, transform)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("only", PLACEMENTS)
@pytest.mark.parametrize("name", ["qwen2", "odd"])
def test_each_placement_alone_changes_nothing(name, only, dtype):
    check_agreement(name, dtype, "flatquant", only)


@pytest.mark.parametrize("only", PLACEMENTS)
def test_each_placement_moves_what_it_acts_on(only):
    model = tiny("llama", torch.float64)
    for parts in simulate(model, no_rounding("flatquant"), only=only):
        if only == CODEC:
            keys = torch.ones(1, 2, 3, 8, dtype=torch.float64)
            assert not torch.allclose(parts.codec.encode(keys, keys)[0], keys)
            continue
        site = parts.inputs[only]
        reader = parts.linears[parts.layout.readers(sites(only))[0]]
        x = torch.ones(3, reader.original[0].in_features).double()
        assert not torch.allclose(site.compute(x), x)
        fused, _ = reader.fused(torch.float64)
        assert not torch.allclose(fused, reader.original[0].weight)


def sites(name):
    return next(site for site in INPUT_SITES if site.name == name)


def test_every_role_reads_one_site():
    assert sorted(role for site in INPUT_SITES for role in site.readers) == sorted(ROLES)
    assert all(role in site_of(role).readers for role in ROLES)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("attention_input", (3, 4)),
        ("attention_output", (4, 6)),  # heads by head_dim, which need not make hidden
        ("mlp_input", (3, 4)),
        ("mlp_hidden", (5, 7)),
    ],
)
def test_factors_fit_the_width_of_their_site(name, sizes):
    assert sites(name).factor_sizes(SHAPE) == sizes
    assert sites(name).width(SHAPE) == sizes[0] * sizes[1]


def test_scales_and_merged_factors_go_where_they_cost_nothing():
    assert {s.name: (s.scale_into, s.merged_into) for s in INPUT_SITES} == {
        "attention_input": ("attention", None),
        "attention_output": (None, "value"),
        "mlp_input": ("mlp", None),
        "mlp_hidden": ("up", None),
    }
