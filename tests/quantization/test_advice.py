"""Widths are chosen exactly, and an advice travels as JSON."""

from itertools import product

import numpy as np
import pytest

from tesseral._errors import ParameterError
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.advice import Advice, Candidate, advise, choose_widths, loss_at

WIDTHS = (2, 3, 4, 6, 8)


def candidate(name, size, power):
    """A candidate whose loss falls by four with each bit."""
    return Candidate(layers=(name,), size=size, losses={b: power * 4.0**-b for b in WIDTHS})


@pytest.mark.parametrize("average", [2.0, 3.3, 4.0, 5.7, 8.0, 9.0])
def test_the_choice_is_that_of_trying_everything(average):
    rng = np.random.default_rng(3)
    sizes, powers = rng.integers(1, 20, 5), np.exp(4 * rng.standard_normal(5))
    found = [
        candidate(str(k), int(n), p) for k, (n, p) in enumerate(zip(sizes, powers, strict=True))
    ]
    best = min(
        sum(c.losses[b] for c, b in zip(found, widths, strict=True))
        for widths in product(WIDTHS, repeat=5)
        if np.average(widths, weights=sizes) <= average + 1e-9
    )
    widths = choose_widths(found, average)
    assert np.average(widths, weights=sizes) <= average + 1e-8
    assert sum(c.losses[b] for c, b in zip(found, widths, strict=True)) == pytest.approx(
        best, rel=1e-5
    )


def test_what_loses_more_gets_more_bits():
    widths = choose_widths([candidate("a", 1, 1.0), candidate("b", 1, 4.0**4)], 4)
    assert widths == [2, 6]


def test_an_average_below_the_smallest_width_is_refused():
    with pytest.raises(ParameterError, match=r"average at least 2 bits, so 1\.9 cannot"):
        choose_widths([candidate("a", 3, 1.0)], 1.9)


@pytest.fixture
def advice():
    weights = [candidate("0.q_proj", 2, 1.0), candidate("0.k_proj", 1, 900.0)]
    inputs = [
        Candidate(layers=("0.q_proj", "0.k_proj"), size=3, losses={b: 4.0**-b for b in WIDTHS})
    ]
    return advise(weights, inputs, weight_bits=4, activation_bits=4.5, n_blocks=1, transform="none")


def test_layers_that_read_one_input_get_one_width(advice):
    assert {w["activation_bits"] for w in advice.layers.values()} == {4}
    assert advice.layers["0.k_proj"]["weight_bits"] > advice.layers["0.q_proj"]["weight_bits"]


def test_averages_and_losses_are_those_of_the_widths(advice):
    bits = [advice.layers[name]["weight_bits"] for name in ("0.q_proj", "0.k_proj")]
    assert advice.weight_bits == pytest.approx((2 * bits[0] + bits[1]) / 3)
    assert advice.activation_bits == 4
    losses = 4.0 ** -bits[0] + 900 * 4.0 ** -bits[1] + 4.0**-4
    assert advice.loss == pytest.approx(losses)
    # between measured widths a loss is interpolated where it is a straight line
    assert advice.uniform_loss == pytest.approx(901 * 4.0**-4 + 4.0**-4.5)


def test_loss_outside_of_the_widths_is_that_of_the_nearest():
    assert loss_at(candidate("a", 1, 16.0), 1) == pytest.approx(1.0)
    assert loss_at(candidate("a", 1, 4.0**8), 12) == pytest.approx(1.0)


def test_json_and_back(advice):
    assert Advice.from_json(advice.to_json()) == advice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected an object with .*; got list"),
        ("{}", "got none"),
        ('{"layers": {}}', "got layers"),
    ],
)
def test_what_is_no_advice_is_refused(text, words):
    with pytest.raises(ParameterError, match=words):
        Advice.from_json(text)


def test_widths_and_versions_that_do_not_exist_are_refused(advice):
    with pytest.raises(ParameterError, match="must be 2 to 8"):
        Advice.from_json(
            advice.to_json().replace('"activation_bits": 4\n', '"activation_bits": 9\n')
        )
    with pytest.raises(ParameterError, match="version 7"):
        Advice.from_json(advice.to_json().replace('"version": 1', '"version": 7'))


def test_a_configuration_takes_the_widths_and_keeps_its_own(advice):
    own = {"0.q_proj": {"weight_bits": 8}}
    applied = advice.applied_to(QuantizationConfig(kv_bits=8, layers=own))
    assert applied.kv_bits == 8
    assert applied.layers["0.q_proj"] == own["0.q_proj"]
    block = applied.in_block(0)
    assert block.layer_bits("self_attn.k_proj")[0] == advice.layers["0.k_proj"]["weight_bits"]


def test_another_model_is_refused(advice):
    advice.check_model(1)
    with pytest.raises(ParameterError, match="1 blocks, this one has 4"):
        advice.check_model(4)
