"""Running a program as several ranks, each a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

_TESTS = str(Path(__file__).parents[1])

START = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # after the group, it would keep the group from its end

backend = sys.argv[5]
rank, size, meeting, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
if backend == "nccl":
    torch.cuda.set_device(device)
dist.init_process_group(
    backend, init_method="file://" + meeting, rank=rank, world_size=size,
    timeout=timedelta(seconds=int(sys.argv[6])),
)
"""
END = """
dist.destroy_process_group()
"""


def run_ranks(program, size, folder, *, tail=END, backend="gloo", limit_s=20):
    """Run a program on every rank; return exit codes and what each wrote to stderr.

    A rank waits ``limit_s`` for the others. It knows ``rank``, ``size``, ``folder`` and ``device``.
    """
    code = START + program + tail
    arguments = [str(size), str(folder / f"meeting-{uuid4()}"), str(folder), backend, str(limit_s)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SKBUILD_EDITABLE_VERBOSE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [_TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), *arguments],
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(size)
    ]
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    return [process.returncode for process in ranks], errors
