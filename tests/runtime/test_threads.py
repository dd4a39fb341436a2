"""Kernels on torch's threads, and in a forked child, which has none of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tesseral import _native
from tesseral._errors import ParameterError
from tesseral.runtime.threads import openmp_libraries, shared_openmp, threads_beside_torch

torch = pytest.importorskip("torch")

PACKAGE = Path(torch.__file__).parent

SCRIPT = """
import os, sys, torch
from tesseral.attention import attention
from tesseral.runtime.threads import shared_openmp

torch.set_num_threads(2)
query, key, value = torch.randn(3, 1, 8, 600, 64).unbind()
before = attention(query, key, value)
child = os.fork()
if child == 0:  # where torch's own operations on several threads would hang
    after = attention(query, key, value)
    os._exit(0 if (after.numpy() == before.numpy()).all() else 1)
_, status = os.waitpid(child, 0)
torch.mm(query[0, 0], key[0, 0].T)
assert torch.equal(attention(query, key, value), before)
print(shared_openmp(torch))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_kernels_share_torchs_threads_and_survive_a_fork():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    libraries = openmp_libraries(PACKAGE)
    assert done.stdout.strip() == (libraries[0] if libraries else "None")


def test_the_librarys_own_openmp_comes_before_others():
    libraries = openmp_libraries(PACKAGE)
    if not libraries:
        pytest.skip("torch has no OpenMP library here")
    assert shared_openmp(torch) in libraries
    others = openmp_libraries(Path("/nowhere"))
    assert others in ([], libraries)


def test_what_is_not_loaded_or_no_openmp_is_not_shared():
    assert not _native.share_openmp("/nowhere/libgomp.so")
    assert not _native.share_openmp(_native.__file__)


def test_the_number_of_threads_is_torchs_unless_said_otherwise(monkeypatch):
    monkeypatch.delenv("TESSERAL_CPU_THREADS", raising=False)
    assert threads_beside_torch() == torch.get_num_threads()
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "3")
    assert threads_beside_torch() == 3
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "none")
    with pytest.raises(ParameterError, match="TESSERAL_CPU_THREADS"):
        threads_beside_torch()
