"""The configuration travels as JSON and refuses what it does not mean."""

import json
from dataclasses import FrozenInstanceError

import pytest

from tesseral._errors import ParameterError
from tesseral.quantization import QuantizationConfig

NAMED = QuantizationConfig(
    weight_bits=3,
    activation_bits=16,
    kv_bits=2,
    key_bits=8,
    value_bits=5,
    transform="hadamard",
    epochs=0,
    batch_size=1,
    samples=2,
    sequence_length=2,
    learning_rate=1e-4,
    clip_learning_rate=1,
    group_size=16,
    layers={"down_proj": {"weight_bits": 8}, "0": {"kv_bits": 8}},
    learn=("clips",),
    seed=7,
)


@pytest.mark.parametrize("config", [QuantizationConfig(), NAMED], ids=["defaults", "named"])
def test_json_holds_all_of_it(config):
    assert QuantizationConfig.from_json(config.to_json()) == config
    assert QuantizationConfig.from_dict(config.to_dict()) == config
    assert json.loads(config.to_json())["version"] == 2


def test_the_defaults_are_four_bits_learned():
    config = QuantizationConfig()
    assert (config.weight_bits, config.activation_bits, config.kv_bits) == (4, 4, 4)
    assert (config.transform, config.rounding, config.epochs) == ("flatquant", "gptq", 15)
    assert (config.samples, config.sequence_length, config.seed) == (128, 2048, 0)


def test_keys_and_values_can_have_widths_of_their_own():
    assert QuantizationConfig(kv_bits=4).cache_bits == (4, 4)
    assert QuantizationConfig(kv_bits=4, key_bits=8).cache_bits == (8, 4)
    assert QuantizationConfig(kv_bits=4, value_bits=16).cache_bits == (4, 16)


def test_only_learned_transforms_learn():
    assert QuantizationConfig(transform="flatquant").learns
    assert not QuantizationConfig(transform="flatquant", epochs=0).learns
    assert not QuantizationConfig(transform="hadamard").learns


def test_what_is_said_of_layers_and_blocks_is_resolved_block_by_block():
    config = QuantizationConfig(
        weight_bits=3,
        key_bits=2,
        layers={
            "down_proj": {"weight_bits": 8, "activation_bits": 8},
            "1": {"weight_bits": 5, "kv_bits": 7},
            "1.q_proj": {"weight_bits": 6},
            "10.down_proj": {"weight_bits": 2},
        },
    )
    first, second, last = (config.in_block(index) for index in (0, 1, 10))
    assert [first.layer_bits(f"mlp.{n}_proj") for n in ("up", "down")] == [(3, 4), (8, 8)]
    assert first.cache_bits == (2, 4)
    # a block has more to say than a name, and both together most
    assert [second.layer_bits(f"x.{n}_proj")[0] for n in ("up", "down", "q")] == [5, 5, 6]
    assert second.layer_bits("mlp.down_proj")[1] == 8
    assert second.cache_bits == (7, 7)
    assert last.layer_bits("mlp.experts.3.down_proj") == (2, 8)
    assert first.site_bits(["mlp.up_proj", "mlp.down_proj"]) == 8


def test_layers_that_a_block_lacks_are_refused():
    config = QuantizationConfig(layers={"down": {"weight_bits": 8}})
    config.check_layers(["mlp.down"])
    with pytest.raises(ParameterError, match=r"layers names down, but a block .* has down_proj, q"):
        config.check_layers(["mlp.down_proj", "attention.q"])


def test_only_learned_transforms_have_learned_parts():
    assert QuantizationConfig(learn=["clips"]).learned == ("clips",)
    assert QuantizationConfig(transform="hadamard").learned == ()
    assert not QuantizationConfig(learn=[]).learns


def test_it_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        QuantizationConfig().seed = 1


@pytest.mark.parametrize(
    "name", ["weight_bits", "activation_bits", "kv_bits", "key_bits", "value_bits"]
)
@pytest.mark.parametrize("bits", [0, 1, 9, 15, 17, 32, -4, 4.0, "4", True, False], ids=repr)
def test_widths_that_cannot_be_are_refused(name, bits):
    with pytest.raises(ParameterError, match=f"{name} must be 2 to 8, or 16 for off, got {bits!r}"):
        QuantizationConfig(**{name: bits})


@pytest.mark.parametrize("name", ["weight_bits", "activation_bits", "kv_bits"])
def test_only_overriding_widths_may_be_missing(name):
    with pytest.raises(ParameterError, match=f"{name} must be 2 to 8"):
        QuantizationConfig(**{name: None})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("transform", "rotation", "transform must be one of 'none', 'hadamard', 'flatquant'"),
        ("transform", None, "transform must be one of .* got None"),
        ("rounding", "stochastic", "rounding must be one of 'nearest'"),
        ("objective", "max", "objective must be one of 'token', 'mean'"),
        ("start", "identity", "start must be one of 'moments', 'hadamard'"),
        ("precision", "float16", "precision must be one of 'float32', 'bfloat16'"),
        ("learn", ["weights"], "learn must list some of 'transforms', 'scales', 'clips'"),
        ("learn", "clips", "learn must list some of .*, got 'clips'"),
        ("group_size", 0, "group_size must be an integer of at least 1"),
        ("least_gain", -0.1, "least_gain must be zero or positive and finite"),
        ("layers", ["down_proj"], "layers must map names to widths"),
        ("layers", {"mlp.down_proj": {}}, "a key of layers is .* got 'mlp.down_proj'"),
        ("layers", {"0.": {}}, "a key of layers .* got '0.'"),
        (
            "layers",
            {"down_proj": {"kv_bits": 8}},
            r"layers\['down_proj'\] may set weight_bits, act",
        ),
        ("layers", {"0": {"bits": 8}}, r"layers\['0'\] may set weight_bits, activation_bits, kv_b"),
        ("layers", {"0": {"kv_bits": 9}}, r"layers\['0'\]\['kv_bits'\] must be 2 to 8, or 16"),
        ("parametrisation", "svd", "parametrisation must be one of 'cayley', 'free'"),
        ("version", 3, "version must be one of 2, got 3"),
        ("version", "1", "version must be one of 2, got '1'"),
        ("seed", 2**32, "seed must be at most 4294967295, got 4294967296"),
        ("rescale_norms", 0, "rescale_norms must be true or false, got 0"),
        ("propagate", 1, "propagate must be true or false, got 1"),
        ("epochs", -1, "epochs must be an integer of at least 0, got -1"),
        ("epochs", 1.5, "epochs must be an integer"),
        ("epochs", True, "epochs must be an integer"),
        ("batch_size", 0, "batch_size must be an integer of at least 1"),
        ("samples", 0, "samples must be an integer of at least 1"),
        ("samples", "8", "samples must be an integer of at least 1, got '8'"),
        ("sequence_length", 1, "sequence_length must be an integer of at least 2"),
        ("seed", -1, "seed must be an integer of at least 0"),
    ],
)
def test_values_that_cannot_be_are_refused(name, value, message):
    with pytest.raises(ParameterError, match=f"QuantizationConfig: {message}"):
        QuantizationConfig(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "clip_learning_rate"])
@pytest.mark.parametrize(
    "rate", [0, -1e-3, float("nan"), float("inf"), "1e-3", None, True], ids=repr
)
def test_rates_that_cannot_be_are_refused(name, rate):
    with pytest.raises(ParameterError, match=f"{name} must be positive and finite, got {rate!r}"):
        QuantizationConfig(**{name: rate})


def test_unknown_keys_are_refused_by_name():
    values = QuantizationConfig().to_dict() | {"wbits": 4, "bits": 3}
    with pytest.raises(ParameterError, match=r"unknown key 'bits', 'wbits'; known are .*weight_b"):
        QuantizationConfig.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "not json"])
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(ParameterError, match="not valid JSON"):
        QuantizationConfig.from_json(text)


def test_json_that_is_no_object_is_refused():
    with pytest.raises(ParameterError, match="expected a JSON object, got list"):
        QuantizationConfig.from_json("[4, 4, 4]")
