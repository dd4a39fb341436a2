"""Running a program as several ranks, each a process of its own."""

import os
import subprocess
import sys

START = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist

backend = sys.argv[5]
rank, size, meeting, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
if backend == "nccl":
    torch.cuda.set_device(device)
dist.init_process_group(
    backend, init_method="file://" + meeting, rank=rank, world_size=size,
    timeout=timedelta(seconds=20),
)
"""
END = """
dist.destroy_process_group()
"""


def run_ranks(program, size, folder, *, tail=END, backend="gloo"):
    """Run a program on every rank; return exit codes and what each wrote to stderr.

    It knows ``rank``, ``size``, ``folder`` and ``device``.
    """
    code = START + program + tail
    arguments = [str(size), str(folder / "meeting"), str(folder), backend]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SKBUILD_EDITABLE_VERBOSE": "0"}
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
