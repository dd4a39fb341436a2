"""What the base install promises, without any extra; a wheel is tried with this file alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tesseral
from tesseral import __version__
from tesseral.attention import attention
from tesseral.cluster import DegreeCorrectedTensorBlockModel, clustering_error_rate
from tesseral.datasets import load_peru, make_tensor_response
from tesseral.regress import TensorResponseRegressor


def test_every_file_of_the_sources_is_installed():
    sources = Path(__file__).parents[2] / "src" / "tesseral"
    installed = Path(tesseral.__file__).parent
    files = {path.relative_to(sources) for path in sources.rglob("*") if path.is_file()}
    files = {file for file in files if "__pycache__" not in file.parts}
    assert len(files) > 100
    assert {file.as_posix() for file in files if not (installed / file).is_file()} == set()


def test_attention_of_arrays_is_softmax_of_products():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 2, 50, 16), dtype=np.float32)
    scores = np.exp(query.astype(np.float64) @ key.swapaxes(-1, -2) / 4)
    expected = scores @ value / scores.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(attention(query, key, value), expected, rtol=2e-5, atol=2e-6)


def test_the_legislature_of_peru_falls_into_its_parties():
    peru = load_peru()
    labels = DegreeCorrectedTensorBlockModel(5).fit(peru.tensor).labels_[0]
    assert clustering_error_rate(peru.party, labels) == pytest.approx(0.1156, abs=1e-4)


def test_a_regression_predicts_its_means():
    planted = make_tensor_response((20, 20, 20), 2, (4, 4, None), signal=8, random_state=0)
    model = TensorResponseRegressor(rank=2).fit(planted.tensor, list(planted.covariates))
    error = np.mean((model.predict() - planted.mean) ** 2) / np.mean(planted.mean**2)
    assert error < 0.02


def test_the_command_says_what_the_machine_can_do():
    command = [sys.executable, "-c", "from tesseral.cli.main import main; main()"]
    run = subprocess.run([*command, "doctor", "--json"], capture_output=True, text=True, check=True)
    assert __version__ in json.dumps(json.loads(run.stdout))
