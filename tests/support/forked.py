"""Processes that begin with the heaviest packages imported, which otherwise takes seconds each."""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

FORKING = multiprocessing.get_context("forkserver")
"""Begins processes; it imports nothing of ours, so that each of them does."""
FORKING.set_forkserver_preload(
    ["torch.distributed.nn.functional", "transformers.modeling_utils", "sklearn.cluster"]
)

_WAIT_S = 300


def run(target, arguments, *, context=FORKING):
    """Run ``target(*given)`` for all arguments at once, each in a process of its own.

    Returns exit codes, and what each process wrote to stdout and to stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [
            tuple(f"{folder}/{number}{way}" for way in "oe") for number in range(len(arguments))
        ]
        processes = [
            context.Process(target=_begin, args=(*files, target, given))
            for files, given in zip(said, arguments, strict=True)
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("TRITON_INTERPRET", raising=False)
            patch.setenv("OMP_NUM_THREADS", "1")
            patch.setenv("SKBUILD_EDITABLE_VERBOSE", "0")
            for process in processes:
                process.start()
        for process in processes:
            process.join(_WAIT_S)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        outputs, errors = (
            [Path(file).read_text("utf-8") for file in files] for files in zip(*said, strict=True)
        )
    assert None not in codes, f"ran for more than {_WAIT_S} s\n" + "\n".join(errors)
    return codes, outputs, errors


def _begin(output, error, target, given):
    for file, number in ((output, 1), (error, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    target(*given)


def run_script(path, *words):
    """Be the program of a file, for :func:`run`."""
    sys.argv = [path, *words]
    runpy.run_path(path, run_name="__main__")
