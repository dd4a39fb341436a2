"""Calibration learns, repeats itself, and says where it fails."""

import pytest
import torch

from support.models import token_ids
from support.quantised import logits_of, tiny
from tesseral._errors import CalibrationError, PrecisionWarning
from tesseral.llm.blockwise import InMemory, quantize_blocks
from tesseral.llm.layouts import blocks_of
from tesseral.quantization.calibration import loop
from tesseral.quantization.config import QuantizationConfig

TOKENS = token_ids(8, 16)


def settings(**changes):
    known = {
        "epochs": 4,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "clip_learning_rate": 5e-2,
        "weight_bits": 3,
        "activation_bits": 3,
        "kv_bits": 3,
        "objective": "token",
        "rounding": "nearest",
        "start": "hadamard",
    }
    return QuantizationConfig(**known | changes)


def quantised(config, name="llama", *, float64=False, **changes):
    """Return a quantised model, the steps reported, and what the model said before."""
    model, steps = tiny(name, torch.float64 if float64 else torch.float32, **changes), []
    before = logits_of(model, TOKENS)
    quantize_blocks(model, config, TOKENS, InMemory(), steps.append)
    return model, steps, before


ONE_ROUNDED = [(3, 16, 16), (16, 3, 16), (16, 16, 2)]
"""Widths of weights, activations and cache, of which one rounds."""


@pytest.mark.parametrize("bits", ONE_ROUNDED, ids=str)
@pytest.mark.parametrize(
    ("name", "propagate"), [("llama", True), ("llama", False), ("qwen3", True)]
)
def test_learning_brings_a_model_closer_to_the_original(name, bits, propagate):
    widths = dict(zip(("weight_bits", "activation_bits", "kv_bits"), bits, strict=True))
    errors = []
    for epochs in (0, 24):
        config = settings(epochs=epochs, batch_size=2, propagate=propagate, **widths)
        # with small weights attention is gentle, so that errors tell of rounding
        model, steps, before = quantised(config, name, initializer_range=0.1)
        errors.append(float((logits_of(model, TOKENS) - before).square().mean()))
    assert errors[1] < 0.95 * errors[0]
    losses = [step.loss for step in steps if step.block == 0]
    assert losses[-1] < 0.95 * losses[0]


def test_every_kind_of_parameter_learns(monkeypatch):
    starts, ends = [], []

    class Watched(loop.SimulatedBlock):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            starts.append({n: p.detach().clone() for n, p in self.named_parameters()})
            ends.append(self)

    monkeypatch.setattr(loop, "SimulatedBlock", Watched)
    quantised(settings(epochs=1))
    for start, end in zip(starts, ends, strict=True):
        still = [n for n, p in end.named_parameters() if torch.equal(p.float(), start[n])]
        assert len(start) > 30
        assert still == []


def test_each_epoch_of_each_block_is_reported_in_turn():
    _, steps, _ = quantised(settings(epochs=3))
    assert [(s.block, s.epoch) for s in steps] == [(b, e) for b in (0, 1) for e in (1, 2, 3)]
    assert {(s.n_blocks, s.n_epochs) for s in steps} == {(2, 3)}


def test_a_block_stops_once_an_epoch_gains_too_little():
    # no epoch halves the loss: the second is the last
    _, steps, _ = quantised(settings(epochs=6, least_gain=0.5))
    assert [(s.block, s.epoch, s.n_epochs) for s in steps] == [
        (0, 1, 6), (0, 2, 2), (1, 1, 6), (1, 2, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "learn", [["transforms"], ["scales"], ["clips"], ["transforms", "clips"]], ids=str
)
def test_only_what_is_asked_for_learns(learn, monkeypatch):
    kept = []

    class Watched(loop.SimulatedBlock):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(loop, "SimulatedBlock", Watched)
    quantised(settings(epochs=1, learn=learn))
    kinds = {"left": "transforms", "right": "transforms", "logits": "clips"}
    for parts in kept:
        names = [name for name, _ in parts.named_parameters() if "factor" not in name]
        found = {kinds.get(name.rpartition(".")[2], "scales") for name in names}
        found |= {"transforms" for name, _ in parts.named_parameters() if "factor" in name}
        assert found == set(learn)


@pytest.mark.parametrize(
    "config",
    [settings(epochs=0), settings(transform="hadamard"), settings(transform="none")],
    ids=["epochs=0", "hadamard", "none"],
)
def test_a_block_without_learning_reports_once(config):
    model, steps, before = quantised(config)
    assert [(s.block, s.epoch, s.n_epochs, s.loss) for s in steps] == [
        (0, 0, 0, None),
        (1, 0, 0, None),
    ]
    assert (logits_of(model, TOKENS) - before).isfinite().all()


@pytest.mark.parametrize("transform", ["flatquant", "hadamard"])
def test_the_seed_fixes_every_bit(transform):
    config = settings(transform=transform, epochs=2)
    first, second = (quantised(config)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = quantised(settings(transform=transform, epochs=2, seed=1))[0].state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_blocks_start_from_transforms_of_their_own():
    model, _, _ = quantised(settings(epochs=0))
    first, second = (block.mlp.mlp_input.transform.factor1 for block in blocks_of(model))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("transform", ["flatquant", "hadamard"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_not_finite_is_refused_by_block(transform, value):
    model = tiny("llama")
    originals = [block.mlp.up_proj for block in blocks_of(model)]
    originals[1].weight[0, 0] = value
    with pytest.raises(CalibrationError, match="the original output of block 1 is not finite"):
        quantize_blocks(model, settings(transform=transform), TOKENS, InMemory(), lambda _: None)
    assert blocks_of(model)[1].mlp.up_proj is originals[1]


def test_a_loss_that_is_not_finite_names_block_and_step():
    config = settings(learning_rate=1e30, clip_learning_rate=1e30)
    with pytest.raises(
        CalibrationError, match=r"loss at step [1-9] of block 0 is not finite; lower learning_rate"
    ):
        quantised(config)


def test_in_bfloat16_a_block_learns_as_much():
    losses = {}
    for precision in ("float32", "bfloat16"):
        model, steps, _ = quantised(settings(precision=precision, epochs=8))
        losses[precision] = [step.loss for step in steps if step.epoch == 8]
        dtypes = {t.dtype for t in model.state_dict().values() if t.is_floating_point()}
        assert dtypes == {torch.float32}
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)


def test_what_fails_in_bfloat16_is_learned_again_in_float32(monkeypatch):
    expected, _, _ = quantised(settings(propagate=False))
    learn = loop._learn

    def failing(task, simulated, *rest):
        learn(task, simulated, *rest)
        if next(iter(simulated.linears.values())).product is not None and task.index == 1:
            raise CalibrationError("the loss at step 3 of block 1 is not finite.")

    monkeypatch.setattr(loop, "_learn", failing)
    with pytest.warns(PrecisionWarning, match=r"block 1 is not finite\. It is learned again in fl"):
        model, _, _ = quantised(settings(propagate=False, precision="bfloat16"))
    got, wanted = (m.state_dict() for m in (model, expected))
    clips = [n for n in wanted if ".layers.1." in n and n.endswith("clip")]
    assert len(clips) == 6
    assert all(torch.equal(got[n], wanted[n]) for n in clips)


def test_a_last_step_that_leads_nowhere_is_not_stored():
    config = settings(learning_rate=1e30, epochs=1, batch_size=8)
    with pytest.raises(CalibrationError, match=r"layernorm\.weight of block 0 is not finite"):
        quantised(config)


def test_a_last_step_that_leads_nowhere_ends_before_gptq():
    config = settings(learning_rate=1e30, epochs=1, batch_size=8, rounding="gptq")
    with pytest.raises(CalibrationError, match=r"second moment of \w+ of block 0 is not finite"):
        quantised(config)


def test_a_float64_model_is_calibrated_in_float64():
    config = settings(weight_bits=16, activation_bits=16, kv_bits=16, epochs=1)
    model, before = tiny("qwen3", torch.float64), None
    before = logits_of(model, TOKENS)
    quantize_blocks(model, config, TOKENS, InMemory(), lambda _: None)
    assert (logits_of(model, TOKENS) - before).abs().max() < 1e-10 * before.abs().max()


@torch.no_grad()
def block_output(model, index, first=None):
    """Return what block ``index`` gives on TOKENS, with ``first`` in place of block 0."""
    layers, kept = model.model.layers, []
    hook = layers[index].register_forward_hook(lambda _, __, output: kept.append(output))
    if first is not None:
        layers[0] = first
    model(TOKENS, use_cache=False)
    hook.remove()
    return kept[0]


@pytest.mark.parametrize("objective", ["token", "mean"])
@pytest.mark.parametrize("propagate", [True, False])
def test_the_loss_is_the_error_on_what_a_block_receives(propagate, objective):
    # steps of almost nothing: the block that is stored is the one whose loss was reported
    rates = {"learning_rate": 1e-14, "clip_learning_rate": 1e-14}
    config = settings(
        epochs=1,
        batch_size=8,
        propagate=propagate,
        objective=objective,
        rescale_norms=False,
        kv_bits=16,
        **rates,
    )
    original, (model, steps, _) = tiny("llama", torch.float64), quantised(config, float64=True)
    target = block_output(original, 1)
    error = block_output(model, 1, None if propagate else blocks_of(original)[0]) - target
    power, error = target.square().mean(-1), error.square().mean(-1)
    expected = (error / power).mean() if objective == "token" else error.mean() / power.mean()
    assert steps[1].loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("transform", ["flatquant", "hadamard", "none"])
def test_compensated_rounding_brings_a_model_closer_than_the_nearest(transform):
    errors = {}
    for rounding in ("nearest", "gptq"):
        widths = {"weight_bits": 3, "activation_bits": 16, "kv_bits": 16}
        config = settings(transform=transform, rounding=rounding, epochs=0, **widths)
        model, _, before = quantised(config, initializer_range=0.1)
        errors[rounding] = float((logits_of(model, TOKENS) - before).square().mean())
    assert errors["gptq"] < 0.9 * errors["nearest"]


def test_maxima_are_those_of_what_the_layers_read():
    model = tiny("llama", num_hidden_layers=1)
    (block,), seen, maxima = blocks_of(model), {}, {}

    class Watched(loop.SimulatedBlock):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            maxima.update(arguments[4])

    readers = {
        "attention_input": block.self_attn.k_proj,
        "attention_output": block.self_attn.o_proj,
        "mlp_input": block.mlp.up_proj,
        "mlp_hidden": block.mlp.down_proj,
    }
    for name, layer in readers.items():
        hook = layer.register_forward_hook(lambda _, x, __, name=name: seen.update({name: x[0]}))
        logits_of(model, TOKENS)
        hook.remove()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "SimulatedBlock", Watched)
        quantize_blocks(model, settings(epochs=0), TOKENS, InMemory(), lambda _: None)
    assert maxima.keys() == seen.keys()
    for name, x in seen.items():
        assert torch.allclose(maxima[name], x.abs().flatten(0, 1).amax(0), rtol=1e-4)
