import json
import os

import pytest
from typer.testing import CliRunner

from support.bench_records import RECORD
from tesseral.bench.attention import run as bench_run
from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.record import read_record
from tesseral.bench.timing import Method
from tesseral.cli.bench import BENCHES
from tesseral.cli.main import COMMANDS, build

SHAPES = [
    Case(q_len=1, kv_len=kv_len, q_heads=2, kv_heads=1, head_dim=8, dtype="float32")
    for kv_len in (20, 30)
]


def run(*arguments):
    command = ["bench", "attention", "--device", "cpu", *map(str, arguments)]
    return CliRunner().invoke(build(COMMANDS), command)


@pytest.fixture
def bench(monkeypatch):
    """Let every number be that of a stored record, and the grid be tiny."""
    seen = []

    def run_table(record, watch, *, threads, with_memory):
        seen.append((threads, with_memory, os.environ["TESSERAL_CPU_THREADS"]))
        watch(bench_run.Step(name="one", done=0, total=1))
        return RECORD

    tiny = Method(repeats=1, section_s=0.0)
    monkeypatch.setattr(bench_run, "run_table", run_table)
    monkeypatch.setattr(bench_run, "measure_ceilings", lambda _: RECORD.ceilings)
    monkeypatch.setattr(bench_run, "QUICK", tiny)
    monkeypatch.setattr("tesseral.bench.attention.cases.grid", lambda: iter(SHAPES))
    monkeypatch.setattr("tesseral.bench.attention.inputs._copies", lambda _: 1)
    return seen


@pytest.mark.parametrize("name", BENCHES)
def test_every_benchmark_helps_with_an_example(name):
    result = CliRunner().invoke(build(COMMANDS), ["bench", name, "--help"])
    assert result.exit_code == 0
    assert f"Example: tesseral bench {name}" in " ".join(result.stdout.split())


def test_tables_go_to_stdout_and_numbers_and_chart_to_files(bench, tmp_path):
    result = run("--json", tmp_path / "out.json", "--png", tmp_path / "out.png", "--threads", 3)
    assert result.exit_code == 0, result.stderr
    assert bench == [(3, True, "3")]
    for words in ("A Chip", "torch 9.9", "begun when nothing spins", "What must hold"):
        assert words in result.stdout
    assert "3 of 4 met" in result.stdout
    assert "why, and in which tiles" not in result.stdout
    assert read_record(tmp_path / "out.json") == RECORD
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_quick_measures_no_memory_and_explain_shows_plans(bench):
    result = run("--quick", "--explain")
    assert result.exit_code == 0, result.stderr
    assert [with_memory for _, with_memory, _ in bench] == [False]
    assert "why, and in which tiles" in result.stdout


@pytest.mark.parametrize("option", ["--json", "--png"])
def test_a_file_that_exists_is_kept_unless_it_may_go(bench, tmp_path, option):
    file = tmp_path / "out"
    file.write_text("mine")
    result = run(option, file)
    assert result.exit_code == 2
    assert result.stderr.startswith("tesseral: ")
    assert "(--overwrite)" in result.stderr
    assert result.stderr.count("\n") == 1
    assert file.read_text() == "mine"
    assert bench == []
    assert run(option, file, "--overwrite").exit_code == 0
    assert file.read_bytes() != b"mine"


@pytest.mark.parametrize("threads", ["0", "-2"])
def test_a_number_of_threads_that_is_none_is_one_line(bench, threads):
    result = run("--threads", threads)
    assert (result.exit_code, bench) == (2, [])
    assert result.stderr == (
        f"tesseral: threads={threads} is not a number of threads; use 1 or more.\n"
    )


def test_the_grid_goes_on_where_it_was(bench, tmp_path):
    file = tmp_path / "grid.json"
    result = run("--grid", "--quick", "--threads", 1, "--json", file)
    assert result.exit_code == 0, result.stderr
    assert "of 2 shapes measured" in result.stdout
    first = json.loads(file.read_text())
    assert len(first["shapes"]) == 2
    assert run("--grid", "--quick", "--threads", 1, "--json", file).exit_code == 0
    assert json.loads(file.read_text())["shapes"] == first["shapes"]
    result = run("--grid", "--quick", "--threads", 2, "--json", file)
    assert result.exit_code == 2
    assert "with another machine" in result.stderr
    file.write_text("{}")
    result = run("--grid", "--quick", "--threads", 1, "--json", file)
    assert result.exit_code == 2
    assert "is no record of this benchmark" in result.stderr
    assert file.read_text() == "{}"


def test_without_torch_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("tesseral.runtime.extras.importlib.import_module", missing)
    result = run()
    assert result.exit_code == 2
    assert "pip install 'tesseral[torch]'" in result.stderr


def test_a_cuda_device_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run("--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr == (
        "tesseral: bench attention: torch sees no CUDA device; use --device cpu.\n"
    )


@pytest.fixture
def device_bench(monkeypatch):
    """Pretend that there is a CUDA device and that it was measured."""
    from tesseral.bench.attention.device import run as device_run
    from tesseral.bench.attention.device.record import DeviceRecord

    devices = [{"name": "A GPU", "backend": "cuda 13.0"}]
    machine = {"accelerators": devices, "packages": {"torch": "9.9"}}
    seen = []

    def run_on_device(watch, *, repeats, save):
        seen.append(repeats)
        watch(bench_run.Step(name="one", done=0, total=1))
        record = DeviceRecord(machine=machine, repeats=repeats, rows=())
        if save is not None:
            save(record)
        return record

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(device_run, "run_on_device", run_on_device)
    return seen


def test_a_cuda_device_is_measured_where_there_is_one(device_bench, tmp_path):
    file = tmp_path / "out.json"
    result = run("--device", "auto", "--quick", "--json", file)
    assert result.exit_code == 0, result.stderr
    assert device_bench == [5]
    assert "A GPU, cuda 13.0, torch 9.9" in result.stdout
    assert json.loads(file.read_text())["schema"] == "tesseral.bench.attention.device/1"


@pytest.mark.parametrize("option", [["--grid"], ["--threads", 2], ["--png", "a.png"]])
def test_options_for_cpus_are_refused_on_a_device(device_bench, option):
    result = run("--device", "cuda", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for CPUs" in result.stderr
    assert device_bench == []
