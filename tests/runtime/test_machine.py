import importlib.metadata
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from types import ModuleType, SimpleNamespace

import pytest

from tesseral.runtime import cpu, machine
from tesseral.runtime.machine import Accelerator, accelerators, machine_record


def test_the_record_survives_json():
    record = machine_record()
    back = json.loads(json.dumps(record.as_dict()))
    assert back["target"] == record.target == cpu.cpu_target()
    assert tuple(back["instruction_sets"]) == record.instruction_sets
    assert back["packages"] == record.packages


def test_the_record_is_frozen_and_says_what_decides_a_speed():
    record = machine_record()
    with pytest.raises(FrozenInstanceError):
        record.cores = 99
    assert record.cpu
    assert record.compiler
    assert record.cores == cpu.available_cores()
    assert record.threads == cpu.cpu_threads()
    assert record.targets == cpu.supported_targets()
    assert record.memory_bytes is None or record.memory_bytes > 2**28
    assert record.packages["numpy"] == importlib.metadata.version("numpy")


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "not-there-at-all"))
    assert list(machine_record().packages) == ["numpy"]


def test_a_wrong_environment_can_still_be_described(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "sse9")
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "many")
    record = machine_record()
    assert record.target is None
    assert record.threads is None
    assert record.targets == cpu.supported_targets()


def test_a_system_that_hides_its_memory_is_described(monkeypatch):
    def refuse(_name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(machine.os, "sysconf", refuse)
    assert machine_record().memory_bytes is None


def test_the_record_imports_no_framework():
    program = (
        "import sys; from tesseral.runtime.machine import machine_record; machine_record();"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), list(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_accelerators_are_listed_only_when_asked_for(monkeypatch):
    torch = ModuleType("torch")
    properties = SimpleNamespace(name="H200", major=9, minor=0, total_memory=2**37)
    torch.cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 2,
        get_device_properties=lambda _index: properties,
    )
    torch.version = SimpleNamespace(cuda="13.0", hip=None)
    monkeypatch.setitem(sys.modules, "torch", torch)
    device = Accelerator(name="H200", backend="cuda 13.0", capability="9.0", memory_bytes=2**37)
    assert machine_record().accelerators == ()
    assert machine_record(with_accelerators=True).accelerators == (device, device)
    torch.version = SimpleNamespace(cuda=None, hip="6.3")
    assert accelerators()[0].backend == "rocm 6.3"
    torch.cuda.is_available = lambda: False
    assert accelerators() == ()


def test_without_torch_there_are_no_accelerators(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(machine, "_versions", lambda _names: {})
    assert accelerators() == ()
    assert "torch" not in sys.modules
