"""What is said to be needed is enough, and does not grow with the number of blocks or samples."""

import errno
import threading
import time
import warnings
from collections import namedtuple

import pytest
import torch

from support.checkpoints import TEXT, save
from support.models import tiny_llama
from tesseral._errors import MemoryWarning
from tesseral.llm import budget as module
from tesseral.llm import quantize
from tesseral.llm.budget import Budget, budget, check
from tesseral.quantization import QuantizationConfig

CPU = torch.device("cpu")


def anonymous():
    """Return the memory of this process that no file can give back."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak(work):
    """Return by how much ``work`` raised the memory of this process, at most."""
    base, highest, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.is_set():
            highest.append(anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(highest) - base


SHAPES = {
    "many tokens": ({"hidden_size": 64, "intermediate_size": 176}, {"sequence_length": 1024}),
    "many weights": ({"hidden_size": 512, "intermediate_size": 1408}, {"sequence_length": 16}),
    "start": (
        {"hidden_size": 64, "intermediate_size": 1536},
        {"sequence_length": 16, "rounding": "nearest"},
    ),
    "gptq": (
        {"hidden_size": 256, "intermediate_size": 1024},
        {"sequence_length": 16, "rounding": "gptq", "transform": "hadamard"},
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_said_to_be_needed_is_enough(name, tmp_path):
    shape, settings = SHAPES[name]
    model = tiny_llama(max_position_embeddings=2048, **shape).to(torch.bfloat16)
    source = save(model, tmp_path / "model")
    del model
    config = QuantizationConfig(epochs=1, samples=4, **settings)
    said = []
    options = {"announce": said.append}
    used = peak(lambda: quantize(source, config, TEXT * 4, tmp_path / "out", **options))
    assert used < said[0].memory_bytes


def test_memory_grows_with_neither_blocks_nor_samples_and_disk_with_both():
    config = QuantizationConfig(batch_size=4, rescale_norms=False)
    few = budget(tiny_llama(num_hidden_layers=2), config, 8, 64)
    deep = budget(tiny_llama(num_hidden_layers=9), config, 8, 64)
    many = budget(tiny_llama(num_hidden_layers=2), config, 80, 64)
    assert few.memory_bytes == deep.memory_bytes == many.memory_bytes
    assert few.disk_bytes < min(deep.disk_bytes, many.disk_bytes)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("propagate", [True, False])
def test_the_disk_said_to_be_needed_is_enough(original, tmp_path, bits, propagate, monkeypatch):
    config = QuantizationConfig(
        weight_bits=bits, propagate=propagate, epochs=1, samples=4, sequence_length=100
    )
    said, largest = [], [0]

    def report(step):
        partial = tmp_path / ".out.partial"
        largest.append(sum(file.stat().st_size for file in partial.glob("*.bf16")))

    out = quantize(original, config, TEXT, tmp_path / "out", announce=said.append, report=report)
    weights = (out / "model.safetensors").stat().st_size
    assert max(largest) + 2 * weights < said[0].disk_bytes + 60_000  # headers of small files


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    original, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    config = QuantizationConfig(epochs=1, samples=4, sequence_length=16)
    with pytest.raises(OSError, match=r"needs 0\.00 GB and 0\.00 GB are free") as caught:
        quantize(original, config, TEXT, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_memory_that_may_not_be_enough_is_warned_of(tmp_path):
    needed = Budget(memory_bytes=10**15, disk_bytes=0)
    with pytest.warns(MemoryWarning, match=r"may need 1000000\.00 GB .*smaller batch_size"):
        check(needed, tmp_path / "out", CPU)
    with warnings.catch_warnings(action="error"):
        check(needed, tmp_path / "out", torch.device("cuda"))
