"""Calibration whose steps are divided among ranks: what one process learns, up to rounding."""

import json

import pytest
import torch
from safetensors.torch import load_file

from support.checkpoints import TEXT, save, save_precise
from support.models import tiny_llama, tiny_mixtral
from support.ranks import run_ranks
from tesseral._errors import ParameterError
from tesseral.llm import quantize
from tesseral.quantization import QuantizationConfig

SETTINGS = {
    "epochs": 2,
    "samples": 5,
    "sequence_length": 16,
    "batch_size": 2,
    "rounding": "nearest",
}

PROGRAM = f"""
import json
from tesseral.llm import quantize
from tesseral.quantization import QuantizationConfig
from tesseral.quantization.calibration.ranks import Ranks
from support.checkpoints import TEXT
losses = []
class Killed(Exception): pass
def report(step):
    if step.loss is not None:
        losses.append(step.loss)
    if STOP is not None and step.block == STOP:
        raise Killed
config = QuantizationConfig(**{SETTINGS!r})
try:
    quantize(f"{{folder}}/model", config, TEXT, f"{{folder}}/out", ranks=Ranks(), report=report)
except Killed:
    pass
with open(f"{{folder}}/losses-{{rank}}.json", "w") as file:
    json.dump(losses, file)
"""


def learn_alone(model, out, settings):
    """Quantise in this process; return where, and the loss of every step."""
    losses = []
    config = QuantizationConfig(**settings)
    out = quantize(model, config, TEXT, out, report=lambda step: losses.append(step.loss))
    return out, losses


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    out, losses = learn_alone(
        save_precise(tiny_llama(), folder / "model"), folder / "out", SETTINGS
    )
    return load_file(out / "model.safetensors"), losses


def run(folder, size, stop=None, program=PROGRAM):
    codes, errors = run_ranks(f"STOP = {stop}\n" + program, size, folder)
    assert codes == [0] * size, "\n".join(errors)
    return [json.loads((folder / f"losses-{rank}.json").read_text()) for rank in range(size)]


def assert_losses(found, expected, first=2):
    """The second block of so small a model turns roundings of the first into a few percent."""
    assert found[:first] == pytest.approx(expected[:first], rel=1e-5)
    assert found[first:] == pytest.approx(expected[first:], rel=0.1)


def assert_alike(out, expected):
    """Codes of the first block may be others at an edge; the rest of it differs by rounding."""
    found = load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if "layers.0" not in name:
            assert found[name].shape == tensor.shape
        elif tensor.dtype == torch.uint8:
            assert (found[name] != tensor).double().mean() < 0.01, name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_learn_what_one_process_learns(alone, tmp_path, size):
    expected, losses = alone
    save_precise(tiny_llama(), tmp_path / "model")
    ranks = run(tmp_path, size)
    for rank in ranks:
        assert rank == ranks[0]
    assert_losses(ranks[0], losses)
    assert_alike(tmp_path / "out", expected)
    assert not (tmp_path / ".out.partial").exists()


def test_a_run_that_stopped_goes_on_with_another_number_of_ranks(alone, tmp_path):
    expected, losses = alone
    model = save_precise(tiny_llama(), tmp_path / "model")
    run(tmp_path, 2, stop=1)
    assert not (tmp_path / "out").exists()
    out, seen = learn_alone(model, tmp_path / "out", SETTINGS)
    assert seen[0] is None  # the first block was done
    assert_losses(seen[1:], losses[2:], first=0)
    assert_alike(out, expected)


def test_devices_and_ranks_at_once_are_refused(tmp_path):
    model = save(tiny_llama(), tmp_path / "model")
    config = QuantizationConfig(**SETTINGS, propagate=False)
    with pytest.raises(ParameterError, match="devices or ranks, not both"):
        quantize(model, config, TEXT, tmp_path / "out", devices=2, ranks=object())


def test_ranks_whose_tokens_choose_other_experts_learn_what_one_process_learns(tmp_path):
    changes = {"num_local_experts": 12, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    settings = SETTINGS | {"sequence_length": 8}
    model = save_precise(tiny_mixtral(**changes), tmp_path / "model")
    alone, losses = learn_alone(model, tmp_path / "alone", settings)
    ranks = run(tmp_path, 2, program=PROGRAM.replace(repr(SETTINGS), repr(settings)))
    assert ranks[0] == ranks[1]
    assert_losses(ranks[0], [loss for loss in losses if loss is not None])
    assert_alike(tmp_path / "out", load_file(alone / "model.safetensors"))


def test_others_need_not_wait_while_the_first_rank_writes(tmp_path):
    save(tiny_llama(), tmp_path / "model")
    slow = """
STOP = None
import time
from tesseral.llm import pipeline
written = pipeline._write
def write_slowly(*given, **more):
    time.sleep(8)
    written(*given, **more)
pipeline._write = write_slowly
"""
    began = (tmp_path / "model").stat().st_mtime
    codes, errors = run_ranks(slow + PROGRAM, 2, tmp_path, limit_s=5)
    assert codes == [0, 0], "\n".join(errors)
    assert (tmp_path / "out" / "config.json").stat().st_mtime > began + 8


def test_a_rank_that_dies_is_named_with_the_step(tmp_path):
    save(tiny_llama(), tmp_path / "model")
    dying = """
STOP = None
import os
from tesseral.quantization.calibration import ranks as module
summed = module.Ranks.sum
def sum_or_die(self, tensors):
    if self.rank == 1:
        os._exit(7)
    summed(self, tensors)
module.Ranks.sum = sum_or_die
"""
    codes, errors = run_ranks(dying + PROGRAM, 2, tmp_path, tail="", limit_s=20)
    assert codes[1] == 7
    assert codes[0] not in (0, None)
    expected = "calibration: rank 0 of 2 could not sum the slopes of a step; no word from rank 1"
    assert expected in errors[0]
