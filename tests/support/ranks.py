"""Running a program as several ranks over gloo, each a process of its own."""

import os
import subprocess
import sys

START = """
import sys
from datetime import timedelta
import torch
import torch.distributed as dist

rank, size, meeting, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group(
    "gloo", init_method="file://" + meeting, rank=rank, world_size=size,
    timeout=timedelta(seconds=20),
)
"""
END = """
dist.destroy_process_group()
"""


def run_ranks(program, size, folder, *, tail=END):
    """Run a program on every rank; return exit codes and what each wrote to stderr.

    It knows ``rank``, ``size`` and ``folder``.
    """
    code = START + program + tail
    arguments = [str(size), str(folder / "meeting"), str(folder)]
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
