"""What an import may bring in, and what works with the base install alone."""

import json
import os
import subprocess
import sys

import pytest

EXTRAS = ("torch", "transformers", "safetensors", "tokenizers", "matplotlib", "rdata")
HEAVY = (*EXTRAS, "sklearn", "scipy", "rich", "typer")

BLOCK_EXTRAS = f"""
import importlib.metadata
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

def version(name, real=importlib.metadata.version):
    if name in {EXTRAS}:
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

sys.meta_path.insert(0, NotInstalled())
importlib.metadata.version = version
"""


def python(code):
    # an editable install may announce on stdout that it looks for changed C++ files
    quiet = os.environ | {"SKBUILD_EDITABLE_VERBOSE": "0"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=quiet,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def imported_by(module):
    """Return the heavy modules that importing ``module`` brings in."""
    code = f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    return set(python(code).split())


def test_importing_the_package_brings_in_nothing_heavy():
    assert imported_by("tesseral") == set()


@pytest.mark.parametrize(
    "module",
    ["tesseral.core", "tesseral.datasets", "tesseral.attention", "tesseral.cli.main"],
)
def test_importing_a_light_room_brings_in_no_extra(module):
    assert imported_by(module).isdisjoint(EXTRAS)


def test_the_base_install_is_enough_for_what_needs_no_extra():
    modules = (
        "tesseral.core",
        "tesseral.core.estimator",
        "tesseral.datasets",
        "tesseral.attention",
        "tesseral.cluster",
        "tesseral.runtime.cpu",
        "tesseral.runtime.machine",
        "tesseral.cli.main",
    )
    python("\n".join([BLOCK_EXTRAS, *(f"import {module}" for module in modules)]))


def test_the_base_install_loads_and_simulates_data():
    python(
        f"{BLOCK_EXTRAS}\n"
        "from tesseral import datasets\n"
        "datasets.load_peru(), datasets.load_nations(), datasets.load_books_excerpt()\n"
        "datasets.load_embedded_lm()\n"
        "datasets.make_block_tensor((9, 9, 9), 3), datasets.make_tensor_response((5, 5), 2, 3)\n"
    )


def test_the_base_install_computes_attention_on_numpy_arrays():
    python(
        f"{BLOCK_EXTRAS}\n"
        "import numpy as np\n"
        "from tesseral.attention import attention\n"
        "x = np.ones((1, 2, 3, 4), dtype=np.float32)\n"
        "assert attention(x, x, x, is_causal=True).shape == x.shape\n"
    )


def test_the_doctor_sees_the_base_install():
    call = "sys.argv[1:] = ['doctor', '--json']\nfrom tesseral.cli.main import main\nmain()\n"
    findings = json.loads(python(BLOCK_EXTRAS + call))
    assert findings["extras"]["torch"] == {"torch": None}
    assert findings["backends"]["linear"] == {"needs": "torch"}
    assert all(answer["chosen"] for answer in findings["backends"]["attention"].values())


def test_a_missing_extra_is_named_to_the_caller():
    output = python(
        f"{BLOCK_EXTRAS}\n"
        "from tesseral import datasets\n"
        "from tesseral._errors import MissingExtraError\n"
        "try:\n"
        "    datasets.load_hcp('HCP.rda')\n"
        "except MissingExtraError as error:\n"
        "    print(error)\n"
    )
    assert "pip install 'tesseral[data]'" in output
