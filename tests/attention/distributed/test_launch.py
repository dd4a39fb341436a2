"""Joining ranks, and leaving nothing of the group behind."""

import os
import subprocess
import sys

import pytest
import torch

from tesseral._errors import ParameterError
from tesseral.attention.distributed.launch import joined

PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from tesseral.attention.distributed.launch import joined

def threads():
    tasks = os.listdir("/proc/self/task")
    return [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]

with joined(rank=0, size=1, meeting="file://" + sys.argv[1], local_rank=0) as device:
    import torch.distributed.nn.functional
    dist.all_reduce(torch.ones(1, device=device))
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="no /proc to count threads in")
def test_a_group_ends_with_its_threads_whatever_was_imported_meanwhile(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "SKBUILD_EDITABLE_VERBOSE": "0"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "meeting"],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [("cuda", "2 of them need as many CUDA devices, found 1"), ("cuda:1", "not cuda:1")],
)
def test_a_device_that_ranks_cannot_have_is_refused(monkeypatch, tmp_path, kind, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    ranks = joined(meeting=f"file://{tmp_path}/meeting", local_rank=0, kind=kind)
    with pytest.raises(ParameterError, match=words), ranks:
        pass


def test_ranks_compute_on_the_cpu_where_that_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    meeting = f"file://{tmp_path}/meeting"
    threads = torch.get_num_threads()
    with joined(rank=0, size=1, meeting=meeting, local_rank=0, kind="cpu") as device:
        assert device == torch.device("cpu")
    assert torch.get_num_threads() == threads
