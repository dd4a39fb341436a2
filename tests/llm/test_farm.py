"""Blocks learned side by side: the bytes of one device, however often the run stops."""

import pytest
import torch

from support.checkpoints import TEXT, contents, save
from support.models import tiny_llama
from tesseral._errors import CalibrationError, ParameterError
from tesseral.llm import farm, quantize
from tesseral.llm.farm import pending_blocks
from tesseral.llm.resume import Progress
from tesseral.quantization import QuantizationConfig

BLOCKS = 4
KINDS = {
    "learned": {},
    "no norms": {"rescale_norms": False},
    "gptq": {"rounding": "gptq"},
    "nothing learned": {"transform": "hadamard"},
}


def settings(**changes):
    known = {"epochs": 2, "samples": 4, "sequence_length": 16, "batch_size": 2}
    return QuantizationConfig(**known | {"propagate": False} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    llama = tiny_llama(num_hidden_layers=BLOCKS)
    return save(llama, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module", params=KINDS)
def alone(request, model, tmp_path_factory):
    """A kind, what to do, and what one device makes of it."""
    config = settings(**KINDS[request.param])
    out = quantize(model, config, TEXT, tmp_path_factory.mktemp("alone") / "out")
    return request.param, config, contents(out)


class Stops:
    """A report that ends the run after some blocks."""

    def __init__(self, blocks):
        self.left, self.seen = blocks, []

    def __call__(self, step):
        self.seen.append(step.block)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("devices", [2, 3])
def test_several_devices_make_the_bytes_of_one(alone, model, tmp_path, devices):
    _, config, expected = alone
    out = quantize(model, config, TEXT, tmp_path / "out", devices=devices)
    assert contents(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


CHANGES = ((2, 3), (2, 1), (3, 2))
STOPS = (1, 2, 4)


@pytest.mark.parametrize("turn", range(3))
def test_a_run_that_stopped_goes_on_with_another_number_of_devices(alone, model, tmp_path, turn):
    """Each kind meets every change and every stop once, and all kinds together all pairs."""
    kind, config, expected = alone
    first, then = CHANGES[turn]
    blocks = STOPS[(turn + list(KINDS).index(kind)) % 3]
    with pytest.raises(KeyboardInterrupt):
        quantize(model, config, TEXT, tmp_path / "out", devices=first, report=Stops(blocks))
    assert not (tmp_path / "out").exists()
    out = quantize(model, config, TEXT, tmp_path / "out", devices=then)
    assert contents(out) == expected


def test_a_run_that_stopped_while_norms_are_rescaled_goes_on(model, tmp_path, monkeypatch):
    config = settings()
    expected = contents(quantize(model, config, TEXT, tmp_path / "expected"))
    rescale, calls = farm.rescale_norms, []

    def stop(*arguments):
        calls.append(arguments[0].index)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rescale(*arguments)

    monkeypatch.setattr(farm, "rescale_norms", stop)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, config, TEXT, tmp_path / "out", devices=2)
    seen = Stops(0)
    assert contents(quantize(model, config, TEXT, tmp_path / "out", devices=2, report=seen)) == (
        expected
    )
    assert seen.seen == list(range(BLOCKS))  # said to be done before, each once
    assert calls == [0, 1, 2, 2, 3]


def test_a_block_that_fails_ends_the_others(model, tmp_path, monkeypatch):
    calibrate = farm.calibrate_block

    def fail(task, config, report):
        if task.index == 1:
            raise CalibrationError("block 1 is not finite")
        return calibrate(task, config, report)

    monkeypatch.setattr(farm, "calibrate_block", fail)
    with pytest.raises(CalibrationError, match="block 1 is not finite"):
        quantize(model, settings(epochs=50), TEXT, tmp_path / "out", devices=2)


def test_what_cannot_be_done_is_said_before_work_starts(model, tmp_path):
    with pytest.raises(ParameterError, match="devices=2 needs propagate=False"):
        quantize(model, settings(propagate=True), TEXT, tmp_path / "out", devices=2)
    with pytest.raises(ParameterError, match="devices must be 1 or more, got 0"):
        quantize(model, settings(), TEXT, tmp_path / "out", devices=0)
    assert list(tmp_path.iterdir()) == []


def test_a_block_learns_again_if_what_leaves_it_is_needed_and_gone(tmp_path):
    progress = Progress(tmp_path / "out", {}, resume=True)
    state = {"weight": torch.zeros(2)}
    assert pending_blocks(progress, 3) == [0, 1, 2]
    progress.save_learned(1, state, {})
    assert pending_blocks(progress, 3) == [0, 1, 2]
    progress.keep("hidden", 2, [torch.zeros(1, 2, 2)])
    assert pending_blocks(progress, 3) == [0, 2]
