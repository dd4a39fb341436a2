import os

import pytest

from tesseral import _native
from tesseral._errors import BackendError, ParameterError
from tesseral.runtime import cpu
from tesseral.runtime.registry import YES, Verdict

NO_WIDE = {"avx512": Verdict(False, "the chip lacks avx512bw"), "avx2": YES, "scalar": YES}


@pytest.fixture
def narrow_machine(monkeypatch):
    monkeypatch.setattr(cpu, "target_verdicts", lambda: NO_WIDE)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("TESSERAL_CPU_TARGET", "TESSERAL_CPU_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_the_system_agrees_on_the_instruction_sets():
    try:
        with open("/proc/cpuinfo", encoding="ascii") as lines:
            flags = next(line for line in lines if line.startswith("flags")).split()
    except (FileNotFoundError, StopIteration):
        pytest.skip("no /proc/cpuinfo with x86 flags")
    assert {name for name in cpu.cpu_features().usable if name in flags} == {
        name for name, _, _ in _native.cpu_features() if name in flags
    }
    assert set(cpu.cpu_features().usable) <= set(flags)


def test_what_the_chip_has_and_the_system_does_not_save_is_told_apart(monkeypatch):
    rows = [
        ("fma", True, True),
        ("avx512f", True, False),
        ("amx", False, True),
        ("x", False, False),
    ]
    monkeypatch.setattr(_native, "cpu_features", lambda: rows)
    monkeypatch.setattr(_native, "cpu_brand", lambda: "  A  Chip ")
    features = cpu.cpu_features.__wrapped__()
    assert features == cpu.CpuFeatures(brand="A Chip", usable=("fma",), unsaved=("avx512f",))


def test_the_scalar_target_runs_everywhere_and_comes_last():
    assert cpu.supported_targets()[-1] == "scalar"
    assert cpu.cpu_target() == cpu.supported_targets()[0]


def test_every_target_has_a_verdict_and_every_refusal_a_reason():
    verdicts = cpu.target_verdicts()
    assert set(verdicts) <= {"amx", "avx512_bf16", "avx512", "avx2", "scalar"}
    assert all(verdict.ok or verdict.reason for verdict in verdicts.values())


@pytest.mark.parametrize(
    ("in_chip", "saved", "verdict"),
    [
        (True, True, YES),
        (False, True, Verdict(False, "the chip lacks avx512bw")),
        (
            True,
            False,
            Verdict(False, "the operating system does not save the registers of avx512bw"),
        ),
    ],
)
def test_a_target_needs_the_chip_and_the_system(monkeypatch, in_chip, saved, verdict):
    monkeypatch.setattr(_native, "cpu_targets", lambda: [("avx512", ["fma", "avx512bw"])])
    monkeypatch.setattr(
        _native,
        "cpu_features",
        lambda: [("fma", True, True), ("avx512bw", in_chip, saved)],
    )
    monkeypatch.setattr(cpu, "cpu_features", cpu.cpu_features.__wrapped__)
    assert cpu.target_verdicts.__wrapped__() == {"avx512": verdict}


def test_the_widest_supported_target_is_the_default(narrow_machine):
    assert cpu.supported_targets() == ("avx2", "scalar")
    assert cpu.cpu_target() == "avx2"


def test_a_target_is_forced_by_argument_before_environment(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "sse9")
    assert cpu.cpu_target("scalar") == "scalar"


def test_a_target_is_forced_by_environment(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "scalar")
    assert cpu.cpu_target() == "scalar"


def test_an_empty_variable_forces_nothing(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "")
    assert cpu.cpu_target() == cpu.supported_targets()[0]


def test_an_unknown_target_raises(monkeypatch):
    with pytest.raises(ParameterError, match=r"target='sse9' is unknown; there are .*scalar\."):
        cpu.cpu_target("sse9")
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "AVX2")
    with pytest.raises(ParameterError, match="TESSERAL_CPU_TARGET='AVX2' is unknown"):
        cpu.cpu_target()


def test_an_unsupported_target_raises_and_never_falls_back(monkeypatch, narrow_machine):
    message = (
        r"TESSERAL_CPU_TARGET='avx512' cannot run on this machine: the chip lacks avx512bw; "
        r"it runs avx2, scalar\."
    )
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "avx512")
    with pytest.raises(BackendError, match=message):
        cpu.cpu_target()


def test_threads_come_from_the_argument_then_ours_then_openmps_then_the_cores(monkeypatch):
    assert cpu.cpu_threads() == cpu.available_cores() >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert cpu.cpu_threads() == 5
    monkeypatch.setenv("TESSERAL_CPU_THREADS", "3")
    assert cpu.cpu_threads() == 3
    assert cpu.cpu_threads(2) == 2


def test_available_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 3, 5}, raising=False)
    assert cpu.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu.available_cores() == 1


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_number_of_threads_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv("TESSERAL_CPU_THREADS", value)
    with pytest.raises(ParameterError, match=f"TESSERAL_CPU_THREADS='{value}' is not a number"):
        cpu.cpu_threads()


def test_a_fraction_of_a_thread_is_refused():
    with pytest.raises(ParameterError, match=r"threads=1\.5 is not a number of threads"):
        cpu.cpu_threads(1.5)


@pytest.fixture
def sysfs(monkeypatch, tmp_path):
    """A machine whose fourth core, the first this process may use, shares its L2 with another."""
    monkeypatch.setattr(cpu, "_SYSFS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5, 3}, raising=False)

    def write(*rows):
        for index, row in enumerate(rows):
            place = tmp_path / "cpu3" / "cache" / f"index{index}"
            place.mkdir(parents=True)
            for name, text in zip(("level", "type", "size", "shared_cpu_list"), row, strict=True):
                (place / name).write_text(f"{text}\n")

    return write


def caches():
    return cpu.cache_sizes.__wrapped__()


def test_caches_are_read_from_sysfs_with_who_shares_them(sysfs):
    sysfs(
        ("1", "Data", "48K", "3"),
        ("1", "Instruction", "32K", "3"),
        ("2", "Unified", "2M", "2-3"),
        ("3", "Unified", "4096K", "0-3,8-9,11"),
        ("4", "Unified", "1G", "0-11"),
    )
    assert caches() == cpu.CacheSizes(
        l1d=48 << 10, l2=2 << 20, l3=4 << 20, l2_cores=2, l3_cores=7, source="sysfs"
    )


def test_a_machine_without_l3_has_none(sysfs):
    sysfs(("1", "Data", "64K", "3"), ("2", "Unified", "1024K", "0-3"))
    assert caches() == cpu.CacheSizes(l1d=64 << 10, l2=1 << 20, l3=0, l2_cores=4, source="sysfs")


def test_where_sysfs_is_silent_glibc_is_asked(sysfs, monkeypatch):
    sysfs(("1", "Data", "", "3"), ("2", "Unified", "2M", "2-3"))
    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: ("glibc", "2.36"))
    told = {188: 48 << 10, 191: 2 << 20, 194: 6 << 20}
    monkeypatch.setattr(os, "sysconf", told.__getitem__)
    assert caches() == cpu.CacheSizes(
        l1d=48 << 10, l2=2 << 20, l3=6 << 20, l3_cores=2, source="sysconf"
    )
    told[191] = -1
    assert caches() == cpu.DEFAULT_CACHES


@pytest.mark.parametrize("libc", ["musl", "glibc"])
def test_where_nothing_tells_caches_have_their_stated_default(sysfs, monkeypatch, libc):
    def refuse(_number):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(cpu.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(os, "sysconf", refuse)
    assert caches() == cpu.DEFAULT_CACHES


def test_the_two_sources_agree_on_this_machine():
    told = [source for source in (cpu._sysfs_caches(), cpu._sysconf_caches()) if source]
    assert len({(source.l1d, source.l2) for source in told}) <= 1
    assert 0 < cpu.cache_sizes().l1d <= cpu.cache_sizes().l2
