"""Products of codes in CUDA C++: machine code for absent chips, and exact sums on one."""

import dataclasses

import pytest
import torch

from support.cubin import read_cubin
from tesseral._errors import BackendError
from tesseral.core.packing import pack
from tesseral.quantization.kernels.cuda import backend
from tesseral.quantization.kernels.cuda.backend import CudaInt4Linear, CudaLinear, multiply_all
from tesseral.quantization.kernels.cuda.program import OUTPUTS, STEP, Variant, source_of
from tesseral.quantization.kernels.problem import LinearProblem, StoredWeight
from tesseral.quantization.kernels.registry import BACKENDS
from tesseral.runtime.cuda import device as cuda
from tesseral.runtime.cuda.nvrtc import compiler_for

SHARED = {75: 64 * 1024, 80: 163 * 1024, 89: 99 * 1024}
REGISTERS = 65536

needs_compiler = pytest.mark.skipif(compiler_for(75) is None, reason="no NVRTC")


def needs_device(test):
    absent = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(absent, reason="needs a CUDA device")(test))


def theory(variant, architecture):
    """Return the products, and reads of shared memory for them, of a tile, which is there once."""
    warps_m, warps_n = variant.warps
    squares = variant.rows // warps_m // 16 * (variant.columns // warps_n // 8)
    steps = STEP // (64 if variant.codes == 4 else 32)
    reads = steps * (variant.rows // warps_m // 16 + variant.columns // warps_n // 8)
    return {"IMMA": squares * steps * (4 if architecture < 80 else 1), "LDSM": reads}


@needs_compiler
@pytest.mark.parametrize("few", [False, True], ids=["many", "few"])
@pytest.mark.parametrize("codes", [4, 8])
@pytest.mark.parametrize("architecture", SHARED)
def test_a_kernel_is_its_theory_and_fits(architecture, codes, few):
    chip = 75 if architecture < 80 else 80
    variant = Variant(chip=chip, codes=codes, output="float16", few=few)
    compiler, source = compiler_for(architecture), source_of()
    options = [f"-arch=sm_{architecture}", *variant.options()]
    listing = read_cubin(
        compiler.compile(source.text, source.headers, options, cubin=True), "linear"
    )
    for name, count in theory(variant, architecture).items():
        assert listing.count[name] == count, name
    assert listing.count["LDL"] == listing.count["STL"] == 0
    threads = 32 * variant.warps[0] * variant.warps[1]
    assert listing.registers * threads <= REGISTERS
    assert variant.shared_bytes <= SHARED[architecture]


@needs_compiler
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_type_of_result_compiles(output):
    source, variant = source_of(), Variant(chip=80, codes=4, output=output)
    options = ["-arch=compute_80", *variant.options()]
    assert b"m16n8k64" in compiler_for(80).compile(
        source.text, source.headers, options, cubin=False
    )


def place(width, row, chunk):
    """Return where a piece of 16 bytes lies, as ``fragments.h`` says."""
    if width == 64:
        return row * 64 + (chunk ^ (row // 2 % 4)) * 16
    return row * 128 + (chunk ^ (row % 8)) * 16


@pytest.mark.parametrize("width", [64, 128])
def test_pieces_that_are_read_or_written_at_once_lie_in_banks_of_their_own(width):
    chunks = width // 16
    every = {place(width, row, chunk) for row in range(16) for chunk in range(chunks)}
    assert every == set(range(0, 16 * width, 16))
    for first in (0, 8):
        for chunk in range(chunks):  # eight rows of a matrix
            banks = {place(width, row, chunk) // 16 % 8 for row in range(first, first + 8)}
            assert len(banks) == 8
    for at in range(0, 16 * chunks, 8):  # eight threads that copy
        banks = {place(width, i // chunks, i % chunks) // 16 % 8 for i in range(at, at + 8)}
        assert len(banks) == 8
    assert "return row * 64 + (chunk ^ (row / 2 % 4)) * 16;" in source_of().headers["fragments.h"]


def drawn(m, length, outputs, *, bits, bias=True):
    generator = torch.Generator().manual_seed(m + length + bits)
    x = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (m, length), generator=generator)
    codes = torch.randint(-8, 8, (outputs, length), generator=generator)
    x[:, 0], codes[:, 0] = -(2 ** (bits - 1)), -8
    scale = torch.rand(outputs, 1, generator=generator) + 0.1
    added = torch.randn(outputs, generator=generator) if bias else None
    weight = StoredWeight(pack(codes.to(torch.int8), 4), scale, added, 4, length)
    there = (part.cuda() if torch.is_tensor(part) else part for part in weight)
    return x.to(torch.int8).cuda(), codes.cuda(), StoredWeight(*there)


@pytest.fixture
def _poison():
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


SIZES = [(1, 32, 5), (16, 96, 128), (17, 160, 130), (129, 4096, 257), (300, 352, 384)]


@needs_device
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("chip", [75, 80])
@pytest.mark.parametrize("codes", [4, 8])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_are_exact_and_scaled(size, codes, chip):
    m, length, outputs = size
    x, held, weight = drawn(m, length, outputs, bits=codes, bias=m != 16)
    sums = (x.double() @ held.double().mT).long()
    (found,) = multiply_all(x, None, [weight], torch.int32, bits=codes, chip=chip)
    assert torch.equal(found.long(), sums)
    scale = torch.rand(m, 1, device="cuda") + 0.1
    expected = sums.float() * scale * weight.scale.mT
    if weight.bias is not None:
        expected += weight.bias
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        (found,) = multiply_all(x, scale, [weight], dtype, bits=codes, chip=chip)
        assert torch.equal(found, expected.to(dtype))


@needs_device
@pytest.mark.parametrize("name", ["cuda", "cuda-int4"])
def test_the_backends_give_what_torch_gives(name):
    x, _, weight = drawn(70, 64, 24, bits=4)
    scale = torch.rand(1, 70, 1, device="cuda")
    asked = LinearProblem(device="cuda", weight_bits=4, activation_bits=4, in_features=64)
    ours = BACKENDS.choose(asked, name)
    theirs = BACKENDS.get("portable")
    for dtype in (torch.float32, torch.float16):
        given = x[None], scale, [weight, weight._replace(bias=None)], dtype, {}
        for found, expected in zip(ours.linears(*given), theirs.linears(*given), strict=True):
            assert torch.equal(found, expected)
    assert torch.equal(ours.linear(x, weight.packed), theirs.linear(x, weight.packed).int())
    floats = (x / 512).to(torch.float8_e4m3fn)
    (found,) = ours.linears(floats, 512 * scale[0], [weight], torch.float32, {})
    (expected,) = theirs.linears(x, scale[0], [weight], torch.float32, {})
    torch.testing.assert_close(found, expected)


PROBLEM = LinearProblem(device="cuda", weight_bits=4, activation_bits=4, in_features=64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "runs on CUDA devices, not on cpu"),
        ({"weight_bits": 8}, "reads 4-bit weights, got 8 bits"),
        ({"groups": 2}, "takes one scale a row, got 2"),
        ({"in_features": 48}, "takes multiples of 32 columns up to 65536, got 48"),
        ({"in_features": 2**16 + 32}, "takes multiples of 32 columns up to 65536, got 65568"),
    ],
    ids=str,
)
def test_what_the_kernels_do_not_take_is_said(change, reason, monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda _: (7, 5))
    monkeypatch.setattr(backend, "target", lambda *_: ("a compiler", "sm_75"))
    refused = dataclasses.replace(PROBLEM, **change)
    for kind in (CudaLinear, CudaInt4Linear):
        assert kind().supports(PROBLEM).ok
        assert kind().supports(refused).reason == reason
        with pytest.raises(BackendError, match=kind.name):
            BACKENDS.choose(refused, kind.name)
    wide = dataclasses.replace(PROBLEM, activation_bits=8)
    assert CudaLinear().supports(wide).ok
    assert CudaInt4Linear().supports(wide).reason == "reads rows of 4 bits, got 8"


@pytest.mark.parametrize(
    ("found", "compiler", "reason"),
    [
        (None, True, "torch sees no CUDA device of NVIDIA"),
        ((7, 0), True, "needs compute capability 7.5, cuda has 7.0"),
        ((7, 5), False, "needs an NVRTC that compiles for compute capability 7.5"),
    ],
)
def test_devices_and_compilers_are_asked(found, compiler, reason, monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda _: found)
    monkeypatch.setattr(backend, "target", lambda *_: ("it", "sm_75") if compiler else None)
    assert reason in CudaLinear().supports(PROBLEM).reason


@pytest.mark.parametrize(("bits", "chosen"), [(4, "cuda-int4"), (8, "cuda")])
def test_turing_gets_what_its_rows_fit(bits, chosen, monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda _: (7, 5))
    monkeypatch.setattr(backend, "target", lambda *_: ("it", "sm_75"))
    problem = dataclasses.replace(PROBLEM, activation_bits=bits)
    assert BACKENDS.choose(problem).name == chosen
