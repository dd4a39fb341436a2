import json

import pytest
from typer.testing import CliRunner

from tesseral.cli import doctor, families
from tesseral.cli.main import COMMANDS, build
from tesseral.report.units import caches_text
from tesseral.runtime.cpu import cpu_target
from tesseral.runtime.env import VARIABLES


def run(*arguments):
    result = CliRunner().invoke(build(COMMANDS), ["doctor", *arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def findings():
    return json.loads(run("--json"))


def test_the_tables_show_every_section_and_every_finding(findings):
    text = run()
    for name in ("Machine", "CPU targets", "Environment variables", "Extras"):
        assert f"{name}\n" in text
    for name in (*findings["machine"], *findings["cpu_targets"]["verdicts"], *findings["extras"]):
        assert f" {name} " in text
    for name in findings["backends"]:
        assert f"Backends: {name}\n" in text


def test_the_active_cpu_target_is_the_one_kernels_use(findings):
    assert findings["cpu_targets"]["chosen"] == cpu_target()
    assert findings["cpu_targets"]["verdicts"][cpu_target()] == {"ok": True, "reason": ""}


def test_every_environment_variable_is_listed_with_its_value(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "scalar")
    rows = {row["name"]: row["value"] for row in doctor.examine()["environment"]}
    assert set(rows) == {variable.name for variable in VARIABLES}
    assert rows["TESSERAL_CPU_TARGET"] == "scalar"


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_every_sample_problem_of_every_family_is_answered(family, findings):
    answers = findings["backends"][family.name]
    assert set(answers) >= set(family.samples)
    for answer in answers.values():
        assert answer["verdicts"][answer["chosen"]]["ok"]
        assert all(v["ok"] or v["reason"] for v in answer["verdicts"].values())


def test_each_kind_of_device_is_asked_about_once(monkeypatch):
    from tesseral.runtime import triton
    from tesseral.runtime.cuda import device
    from tesseral.runtime.machine import Accelerator

    gpu = Accelerator(name="A GPU", backend="cuda 13.0", capability="9.0", memory_bytes=1)
    old = Accelerator(name="Old", backend="cuda 13.0", capability="6.1", memory_bytes=1)
    monkeypatch.setattr(families, "accelerators", lambda: (gpu, gpu, old))
    monkeypatch.setattr(triton, "installed", lambda *_: True)
    capabilities = {"cuda:0": (9, 0), "cuda:2": (6, 1)}
    monkeypatch.setattr(device, "capability", capabilities.get)
    answers = families.ask(families.FAMILIES[0])
    sample = "decoding after 4096, 4-bit keys and values"
    assert len(answers) == 2 + 2 * len(families.FAMILIES[0].device_samples)
    assert answers[f"{sample}, on A GPU"]["chosen"] == "triton"
    verdicts = answers[f"{sample}, on Old"]["verdicts"]
    assert verdicts["triton"]["reason"] == "needs compute capability 8.0, cuda:2 has 6.1"


def test_caches_are_shown_with_the_number_of_cores_that_share_them():
    caches = {"l1d": 49152, "l2": 2**21, "l3": 0, "source": "sysfs"}
    caches |= {"l1d_cores": 1, "l2_cores": 2, "l3_cores": 1}
    words = caches_text(caches)
    assert words == "l1d 48 KiB / 1, l2 2048 KiB / 2 cores (from sysfs)"


def test_a_forced_name_that_does_not_exist_is_shown_and_not_fatal(monkeypatch):
    monkeypatch.setenv("TESSERAL_ATTENTION_BACKEND", "warp")
    answer = next(iter(doctor.examine()["backends"]["attention"].values()))
    assert answer["chosen"] is None
    assert "there is no backend 'warp'" in answer["refusal"]
    assert "there is no backend 'warp'" in run()


def test_a_forced_cpu_target_that_does_not_exist_is_shown_and_not_fatal(monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "sse9")
    targets = doctor.examine()["cpu_targets"]
    assert targets["chosen"] is None
    assert "TESSERAL_CPU_TARGET='sse9' is unknown" in targets["refusal"]


def test_a_refusal_is_shown_with_its_reason():
    rows = doctor._verdict_rows(
        {
            "chosen": "b",
            "refusal": None,
            "verdicts": {
                "a": {"ok": False, "reason": "needs a GPU"},
                "b": {"ok": True, "reason": ""},
                "c": {"ok": True, "reason": ""},
            },
        }
    )
    assert list(rows) == [("a", "no: needs a GPU"), ("b", "runs"), ("c", "could run")]


def test_a_missing_module_of_ours_is_a_bug_and_propagates():
    broken = families.Family(name="x", registry="tesseral.absent:B", problem="y:Z", samples={})
    with pytest.raises(ModuleNotFoundError, match=r"tesseral\.absent"):
        families.ask(broken)


def test_every_extra_is_listed_and_missing_packages_say_how_to_install(monkeypatch):
    lines = [
        "numpy>=2.0",
        'rich>=13.9; extra == "shown"',
        'not-there>=1; extra == "shown"',
        'tesseral[shown]; extra == "all"',
    ]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _name: lines)
    extras = doctor.examine()["extras"]
    assert list(extras) == ["shown"]
    assert extras["shown"]["rich"] is not None
    assert extras["shown"]["not-there"] is None
    assert "pip install 'tesseral[shown]'" in run()


def test_what_is_missing_is_recommended_for_what_it_is_for():
    extras = {"llm": {"torch": "2.13", "transformers": None}, "plot": {"matplotlib": "3"}}
    found = doctor.recommended({"accelerators": []}, extras)
    assert found[0]["install"] == "pip install 'tesseral[llm]'"
    assert "language models" in found[0]["to"]
    assert not any("plot" in row["install"] for row in found)
    assert not any("triton" in row["install"] for row in found)


@pytest.mark.parametrize(("capability", "extra"), [("9.0", "triton"), ("7.5", "cuda")])
def test_devices_have_extras_of_their_own(capability, extra):
    machine = {"accelerators": [{"capability": capability}]}
    missing = {"triton": {"triton": None}, "cuda": {"nvidia-cuda-nvrtc-cu12": None}}
    installs = [row["install"] for row in doctor.recommended(machine, missing)]
    assert installs == [f"pip install 'tesseral[{extra}]'"]
