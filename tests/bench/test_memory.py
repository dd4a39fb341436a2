import subprocess

import numpy as np
import pytest

from tesseral.bench import memory

CHILD = """
import json, sys
import numpy as np
from tesseral.bench.memory import peak_extra_bytes
def call(mib):
    scratch = np.ones(mib << 20, np.uint8)
    return np.full(3 << 20, scratch[-1])
json.dump([peak_extra_bytes(lambda: call(mib)) for mib in json.load(sys.stdin)], sys.stdout)
"""


def test_the_peak_is_what_a_call_takes_beyond_its_result(tmp_path, monkeypatch):
    if not memory._SELF.exists():
        pytest.skip("needs /proc")
    (tmp_path / "child_of_memory.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    # a small call after a large one shows that what was freed hides nothing
    large, small = memory.run_alone("child_of_memory", [48, 8], threads=1)
    assert large == pytest.approx(48 * 2**20, abs=2**20)
    assert small == pytest.approx(8 * 2**20, abs=2**20)


def test_the_process_has_the_threads_asked_for(tmp_path, monkeypatch):
    code = "import json, os; print(json.dumps([os.environ[n] for n in ('OMP_NUM_THREADS', "
    (tmp_path / "threads_of_memory.py").write_text(f"{code}'TESSERAL_CPU_THREADS')]))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert memory.run_alone("threads_of_memory", [], threads=3) == ["3", "3"]


def test_where_the_system_does_not_tell_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_SELF", tmp_path / "absent")
    assert memory.peak_extra_bytes(lambda: np.ones(3)) is None


def test_a_process_that_fails_is_no_answer():
    with pytest.raises(subprocess.CalledProcessError):
        memory.run_alone("no_such_module_of_tesseral", [], threads=1)
