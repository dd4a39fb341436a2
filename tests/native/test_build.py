"""The native code under sanitizers, and what its objects export; needs a compiler and CMake."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tesseral.runtime.cpu import supported_targets

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
CMAKE, NINJA, NM = (shutil.which(tool, path=PATH) for tool in ("cmake", "ninja", "nm"))
COMPILER = shutil.which(os.environ.get("CXX", "c++"), path=PATH)

pytestmark = pytest.mark.skipif(
    not (CMAKE and COMPILER), reason="needs cmake and a C++ compiler on the path"
)


def run(*command):
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def build(directory, *options, targets):
    generator = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}") if NINJA else ()
    run(CMAKE, "-S", ROOT, "-B", directory, *generator, *options)
    run(CMAKE, "--build", directory, "--parallel", "2", "--target", *targets)


def need_sanitizer(name, directory):
    source, program = directory / "empty.cpp", directory / "empty"
    source.write_text("int main() {}")
    for command in ((COMPILER, f"-fsanitize={name}", source, "-o", program), (program,)):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip(f"the compiler's {name} sanitizer does not work on this machine")


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_and_threads_are_clean_under(sanitizer, tmp_path):
    need_sanitizer(sanitizer, tmp_path)
    # only those that the program can run here: building the others takes minutes
    here = ";".join(supported_targets())
    options = (f"-DTESSERAL_SANITIZE={sanitizer}", f"-DTESSERAL_TARGETS={here}")
    build(tmp_path / "build", *options, targets=["check_kernels"])
    assert "0 failures" in run(tmp_path / "build" / "check_kernels")


@pytest.mark.skipif(not NM, reason="needs nm")
def test_an_unoptimised_target_exports_its_table_and_nothing_shared(tmp_path):
    """A shared (weak) symbol could be linked from the object built for a wider machine."""
    nanobind = pytest.importorskip("nanobind")
    options = (
        "-DCMAKE_BUILD_TYPE=Debug",
        "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dnanobind_DIR={nanobind.cmake_dir()}",
    )
    build(tmp_path, *options, targets=["tesseral_kernels"])
    kernels = {path.stem for path in (ROOT / "native/cpu/kernels").glob("*.cpp")}
    objects = [path for path in tmp_path.rglob("*.o") if "/kernels/" in path.as_posix()]
    targets = {path.relative_to(tmp_path).parts[1] for path in objects}
    assert len(objects) == len(targets) * len(kernels) >= 1
    for path in objects:
        target = path.relative_to(tmp_path).parts[1].removeprefix("tesseral_").removesuffix(".dir")
        lines = run(NM, "--extern-only", "--defined-only", "--demangle", path).splitlines()
        exports = [line.split(maxsplit=2)[1:] for line in lines if line]
        kernel = path.name.partition(".")[0]
        assert [name for _, name in exports] == [f"tesseral::{target}::{kernel}"]
        assert all(kind in "DR" for kind, _ in exports)
