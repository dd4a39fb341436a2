"""The error tensor is what rounding one layer does, and its loss what that does to predictions."""

import numpy as np
import pytest
import torch

from support.models import tiny_llama, tiny_mixtral, tiny_qwen2, tiny_qwen3_moe
from tesseral.llm.analysis.effects import explain_errors
from tesseral.llm.analysis.errors import ErrorTensor, error_tensor, settings_of
from tesseral.llm.analysis.run import advice_of
from tesseral.quantization.simulate import fake_quantize_rows

SEQUENCES = torch.randint(1, 60, (6, 64), generator=torch.Generator().manual_seed(0))
ONES = torch.ones(2)


@pytest.fixture(scope="module")
def found():
    return error_tensor(tiny_llama().eval(), SEQUENCES, (3, 4, 8))


def number(found, part, bits, transform):
    return [(s.part, s.bits, s.transform) for s in found.settings].index((part, bits, transform))


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen2])
def test_errors_are_those_of_the_rounded_layer(build):
    model = build().eval()
    found = error_tensor(model, SEQUENCES[:2], (3,))
    linear = model.model.layers[1].self_attn.k_proj
    inputs = []
    handle = linear.register_forward_pre_hook(lambda _, x: inputs.append(x[0].flatten(0, 1)))
    with torch.no_grad():
        for tokens in SEQUENCES[:2]:
            model(tokens[None])
        handle.remove()
        x, weight = torch.cat(inputs), linear.weight
        exact = x @ weight.T
        by_part = {
            "weight": x @ fake_quantize_rows(weight, ONES, 3).T,
            "activation": fake_quantize_rows(x, ONES, 3) @ weight.T,
        }
    place = 1, found.projections.index("k_proj")
    for part, product in by_part.items():
        expected = float(((product - exact) ** 2).sum() / (exact**2).sum())
        assert found.error[place][number(found, part, 3, "none")] == pytest.approx(expected, 1e-4)
    peak = (x.abs().amax(-1) / x.square().mean(-1).sqrt()).mean()
    assert found.peaks[place] == pytest.approx(float(peak), rel=1e-5)
    assert found.sizes[place] == weight.numel()


def test_the_transform_alone_changes_nothing(found):
    # at 8 bits only rounding is left, so an error of the transform itself would show
    for part in ("weight", "activation"):
        assert np.all(found.error[:, :, number(found, part, 8, "hadamard")] < 1e-3)


def test_the_loss_is_the_divergence_of_predictions_that_it_predicts(found):
    """For one layer at a time, and small errors; a draw of labels leaves noise."""
    model = tiny_llama().eval()
    with torch.no_grad():
        before = model(SEQUENCES).logits.double().log_softmax(-1)
    ratios = []
    for layer in (0, 1):
        for name in ("self_attn.v_proj", "mlp.down_proj", "mlp.up_proj"):
            linear = model.model.layers[layer].get_submodule(name)
            exact = linear.weight.data
            linear.weight.data = fake_quantize_rows(exact, ONES, 4)
            with torch.no_grad():
                after = model(SEQUENCES).logits.double().log_softmax(-1)
            linear.weight.data = exact
            divergence = float((before.exp() * (before - after)).sum(-1).mean())
            place = layer, found.projections.index(name.rpartition(".")[2])
            ratios.append(found.loss[place][number(found, "weight", 4, "none")] / divergence)
    assert 0.5 < np.exp(np.mean(np.log(ratios))) < 2
    assert np.std(np.log(ratios)) < 0.6


def test_labels_that_are_drawn_depend_on_the_seed_alone():
    results = [
        error_tensor(tiny_llama().eval(), SEQUENCES[:1], (3,), seed=seed).loss for seed in (5, 5, 6)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_experts_of_a_block_count_as_one_layer():
    model = tiny_mixtral().eval()
    names = set(dict(model.named_modules()))
    found = error_tensor(model, SEQUENCES[:1], (4,))
    assert "gate_up_proj" in found.projections
    assert set(dict(model.named_modules())) == names
    sizes = dict(zip(found.projections, found.sizes[0], strict=True))
    assert sizes["down_proj"] == 5 * 32 * 48


def test_a_projection_that_a_layer_lacks_is_missing():
    found = error_tensor(tiny_qwen3_moe().eval(), SEQUENCES[:1], (4,))
    fused, single = (found.projections.index(name) for name in ("gate_up_proj", "gate_proj"))
    assert np.isnan(found.error[1, fused]).all()
    assert np.isnan(found.error[0, single]).all()
    assert np.isfinite(found.error[0, fused]).all()
    advice = advice_of(found, 4, 4, "none")
    assert "0.gate_up_proj" in advice.layers
    assert "0.gate_proj" not in advice.layers


def planted(noise=0.05):
    """Errors that follow the model of the regression exactly but for noise."""
    rng = np.random.default_rng(0)
    settings = settings_of((2, 3, 4, 6))
    layers, names = 8, ("a", "b", "c")
    depth = np.linspace(-0.5, 0.5, layers)
    log2 = np.empty((layers, len(names), len(settings)))
    for p in range(len(names)):
        for k, s in enumerate(settings):
            slope = -2.0 if s.part == "weight" else -1.5
            level = slope * (s.bits - 4) - 6 - (p if s.part == "activation" else 0)
            log2[:, p, k] = level + 1.5 * depth * (s.part == "activation")
            log2[:, p, k] -= 3 * (s.transform == "hadamard") * (s.part == "activation")
    log2 += noise * rng.standard_normal(log2.shape)
    return ErrorTensor(
        error=2.0**log2,
        loss=2.0**log2,
        settings=settings,
        projections=names,
        sites=("x", "x", "y"),
        peaks=np.exp(rng.standard_normal((layers, len(names)))),
        weight_peaks=np.ones((layers, len(names))),
        sizes=np.ones((layers, len(names)), dtype=np.int64),
        n_tokens=1,
    )


def test_effects_that_were_planted_are_found_with_intervals():
    effects = explain_errors(planted())
    assert effects.explained > 0.99
    truth = {
        (0, "weights, a bit more"): -2.0,
        (0, "activations, a bit more"): -1.5,
        (0, "activations, Hadamard"): -3.0,
        (0, "weights, Hadamard"): 0.0,
        (1, "activations to 4 bits"): 1.5,
        (1, "weights to 4 bits"): 0.0,
        (2, "activations to 4 bits"): 0.0,
    }
    inside = []
    for (k, name), value in truth.items():
        place = k, slice(None), effects.setting.index(name)
        assert effects.coef[place] == pytest.approx(value, abs=0.15)
        inside += list((effects.low[place] <= value) & (value <= effects.high[place]))
    assert np.mean(inside) > 0.8
    assert np.all(effects.high - effects.low < 0.3)


def test_one_block_alone_is_explained_too():
    found = error_tensor(tiny_llama(num_hidden_layers=1).eval(), SEQUENCES[:1], (3, 4))
    effects = explain_errors(found)
    assert effects.layer == ("level",)
    assert np.all(np.isfinite(effects.coef))
