"""Machine code for chips that are not here: what it needs, and its matrix products counted."""

import ctypes
import dataclasses

import pytest

from support.cubin import read_cubin
from tesseral._errors import BackendError
from tesseral.attention.backends.cuda.chips import TURING, VOLTA, VOLTA_HALF, WIDTHS
from tesseral.attention.backends.cuda.program import Call, Variant, build, source_of
from tesseral.attention.problem import AttentionProblem
from tesseral.runtime.cuda import nvrtc, program
from tesseral.runtime.cuda.program import target

CHIPS = {"turing": TURING, "volta": VOLTA, "volta_half": VOLTA_HALF}
SHARED = {70: 96 * 1024, 75: 64 * 1024}
REGISTERS = 65536
RULES = {
    64: {"general": True, "softcap": True, "alibi": True, "mask": "boolean"},
    128: {},
    256: {"packed": True, "paged": True, "parts": True},
}

needs_compiler = pytest.mark.skipif(
    nvrtc.compiler_for(70) is None, reason="no NVRTC of CUDA 12, as in tesseral[cuda]"
)


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TESSERAL_CACHE", str(tmp_path))
    build.cache_clear()


def variant_of(chip, width, **more):
    problem = AttentionProblem(
        batch=1, q_len=512, kv_len=512, q_heads=1, kv_heads=1, head_dim=width, value_dim=width,
        dtype="float16", device="cuda:0", scale=1.0,
    )  # fmt: skip
    return Variant(
        chip=chip, tiles=chip.tiles(problem), head_dim=width, value_dim=width, **more
    )  # fmt: skip


def theory(chip, tiles):
    """Return the instructions of one tile of keys: the loop is all there is, and is there once."""
    chunks = tiles.width // 8
    if chip is TURING:
        # an instruction is 16 rows by 8 by 8; four right operands are read at once
        products = 2 * chunks * tiles.keys // 8
        queries = chunks // 2  # read once, before the loop or in it
        return {"HMMA.1688": products, "LDSM": products // 4 + queries}
    squares = tiles.squares * tiles.keys // 16
    keys = values = squares * 2 * chunks  # mma.m8n8k4, 16 rows by 16 by 4 for the whole warp
    steps = 2 if chip is VOLTA_HALF else 4  # machine instructions of one with such sums
    exchanges = 4 if chip is VOLTA_HALF else 6
    tops = tiles.squares * (1 if chip is VOLTA_HALF else 4)
    return {
        "HMMA.884": steps * keys + 4 * values,
        "LDS": chunks * (tiles.squares + tiles.keys // 16) + tiles.keys // 16 * chunks,
        # of weights; of the largest of each row; of its sum, at the end
        "SHFL.BFLY": exchanges * squares + 2 * tops,
    }


@needs_compiler
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS.keys())
def test_a_kernel_is_its_theory_and_fits(chip, width):
    variant = variant_of(chip, width, **RULES[width])
    listing = read_cubin(build(variant, chip.architecture, "attention"), "attention")
    tiles = variant.tiles
    for name, count in theory(chip, tiles).items():
        assert listing.count[name] == count, name
    # twelve warps of Turing keep a few numbers that no tile changes in local memory
    kept = 8 if chip is TURING and width == 128 else 0
    for spilled in ("LDL", "STL"):
        assert listing.count[spilled] <= kept
    assert listing.registers * 32 * tiles.warps * tiles.blocks <= REGISTERS
    assert tiles.shared_bytes * tiles.blocks <= SHARED[chip.architecture]


@needs_compiler
@pytest.mark.parametrize("chip", [TURING, VOLTA], ids=["turing", "volta"])
def test_a_result_is_compiled_once(monkeypatch, chip):
    compiled = []
    plain = nvrtc.Compiler.compile

    def counting(self, *args, **given):
        compiled.append(args)
        return plain(self, *args, **given)

    monkeypatch.setattr(nvrtc.Compiler, "compile", counting)
    variant = variant_of(chip, 64, parts=True)
    codes = set()
    for _ in range(3):
        build.cache_clear()
        codes.add(build(variant, chip.architecture, "merge"))
    assert len(codes) == len(compiled) == 1
    build(dataclasses.replace(variant, value_dim=56), chip.architecture, "merge")
    assert len(compiled) == 2


@needs_compiler
def test_a_folder_that_cannot_be_written_costs_no_result(monkeypatch, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("in the way")
    monkeypatch.setenv("TESSERAL_CACHE", str(occupied))
    assert build(variant_of(VOLTA, 64, parts=True), 70, "merge").startswith(b"\x7fELF")


@needs_compiler
def test_later_devices_get_what_the_chip_had():
    assert target(70, 70)[1] == "sm_70"
    assert target(75, 75)[1] == "sm_75"
    assert target(70, 90)[1] == "compute_70"
    code = build(variant_of(TURING, 64, parts=True), 90, "merge")
    assert b".target sm_75" in code


def test_without_a_compiler_there_is_no_target(monkeypatch):
    monkeypatch.setattr(program, "compilers", lambda: ())
    assert target(70, 70) is None
    with pytest.raises(BackendError, match=r"volta: no NVRTC compiles for 7\.0"):
        build(variant_of(VOLTA, 64), 70, "attention")


def test_a_compiler_of_cuda_13_serves_turing_only(monkeypatch):
    newer = type("Newer", (), {"architectures": (75, 80, 90), "version": (13, 0)})()
    monkeypatch.setattr(program, "compilers", lambda: (newer,))
    assert target(70, 70) is None
    assert target(75, 75) == (newer, "sm_75")
    assert target(70, 90) == (newer, "compute_75")


@needs_compiler
def test_what_does_not_compile_says_why():
    compiler = nvrtc.compiler_for(70)
    with pytest.raises(BackendError, match=r"identifier .no. is undefined"):
        compiler.compile("no program", {}, ["-arch=sm_70"], cubin=True)
    options = ["-arch=sm_70", *variant_of(VOLTA, 64).options()]
    size = f"-DCALL_BYTES={ctypes.sizeof(Call)}"
    options[options.index(size)] += "1"
    source = source_of("volta", "merge")
    with pytest.raises(BackendError, match=r"call\.py: Call differs"):
        compiler.compile(source.text, source.headers, options, cubin=True)
