"""One small run of the demo, shared by the tests that look at what came of it."""

from functools import partial
from pathlib import Path

import pytest
import torch

from support.checkpoints import TEXT, save
from support.models import tiny_llama
from tesseral.quantization import QuantizationConfig
from tesseral.report.demo.plan import DemoPlan
from tesseral.report.demo.run import run_demo
from tesseral.report.demo.speed import measure_speeds

# products of tiny matrices: more threads would only wait for one another
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def plan(tmp_path_factory) -> DemoPlan:
    """A plan for a tiny model and two seeds."""
    return DemoPlan(
        model=save(tiny_llama(), tmp_path_factory.mktemp("models") / "tiny"),
        calibration=TEXT,
        test=TEXT[7:],
        config=QuantizationConfig(epochs=1, samples=2, sequence_length=16),
        seeds=(3, 4),
        sequence_length=20,
        max_sequences=2,
        prompt="It <was>",
        new_tokens=4,
        speeds=partial(measure_speeds, lengths=(16, 32), cache=64, width=64, repeats=1),
    )


@pytest.fixture(scope="session")
def finished(plan, tmp_path_factory):
    """The record of that run, its directory, and the steps that were shown."""
    out: Path = tmp_path_factory.mktemp("demo") / "out"
    steps = []
    return run_demo(plan, out, watch=steps.append), out, steps
