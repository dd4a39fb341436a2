"""Running a program as several ranks, each a process of its own."""

import multiprocessing
import os
import socket
import sys
from datetime import timedelta
from uuid import uuid4

from support.forked import FORKING, run

END = """
dist.destroy_process_group()
"""


def run_ranks(program, size, folder, *, tail=END, backend="gloo", limit_s=20):
    """Run a program on every rank; return exit codes and what each wrote to stderr.

    A rank waits ``limit_s`` for the others. It knows ``rank``, ``size``, ``folder`` and ``device``.
    """
    group = {
        "backend": backend,
        "init_method": f"file://{folder}/meeting-{uuid4()}",
        "world_size": size,
        "timeout": timedelta(seconds=limit_s),
    }
    # a CUDA device is not for processes that were forked
    context = FORKING if backend == "gloo" else multiprocessing.get_context("spawn")
    arguments = [(rank, group, program + tail, str(folder)) for rank in range(size)]
    codes, _, errors = run(_be, arguments, context=context)
    return codes, errors


def _be(rank, group, program, folder):
    import torch
    import torch.distributed as dist
    import torch.distributed.nn.functional  # after the group, it would keep the group from its end

    device = torch.device("cuda", rank) if group["backend"] == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(rank=rank, **group)
    names = vars(sys.modules["__main__"])  # where pickle looks for what a program defines
    names |= {"sys": sys, "torch": torch, "dist": dist}
    names |= {"rank": rank, "size": group["world_size"], "folder": folder, "device": device}
    exec(program, names)


def command_on_ranks(words, size):
    """Run a command line on ranks as torchrun would; return exit codes, outputs and errors."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return run(
        _command, [(rank, size, port, [str(word) for word in words]) for rank in range(size)]
    )


def _command(rank, size, port, words):
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK"), rank)
    ranks |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), size)
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    sys.argv[1:] = words
    from tesseral.cli.main import main

    main()
