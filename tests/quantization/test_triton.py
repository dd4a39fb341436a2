"""The Triton kernels against exact arithmetic: on a CUDA device, else small in the interpreter.

Where Triton is not installed, only what it is asked beforehand is tested.
"""

import contextlib

import pytest
import torch

from support.kernels import DEVICE, kernels, needs_kernels
from tesseral._errors import BackendError
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import pack, packed_length, unpack
from tesseral.quantization.kernels.heads import HEADS, HeadsProblem
from tesseral.quantization.kernels.portable import PortableRows
from tesseral.quantization.kernels.problem import LinearProblem, RowsProblem, StoredWeight
from tesseral.quantization.kernels.registry import BACKENDS, ROWS
from tesseral.quantization.kernels.triton import device as gpu
from tesseral.quantization.kernels.triton.backend import TritonLinear, TritonRows, fits
from tesseral.quantization.kvcodec import encode_heads
from tesseral.quantization.numerics import symmetric_range
from tesseral.runtime import triton as runtime_triton
from tesseral.runtime.cuda import device as cuda

DTYPES = [torch.float32, torch.float16]
if DEVICE == "cuda":
    DTYPES.append(torch.bfloat16)


@pytest.fixture(scope="module")
def _kernels():
    with kernels():
        yield


@contextlib.contextmanager
def poisoned():
    """Fill memory that nobody has written yet with NaN, or the largest whole number."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def codes(*shape, bits=4, seed=0):
    """Return codes that reach both ends of their range."""
    low, high = symmetric_range(bits)
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(low, high + 1, shape, generator=generator, dtype=torch.int8)
    found[..., 0] = low
    return found.to(DEVICE)


def factors_of(sizes):
    """Return invertible factors that are not symmetric, one of them far from one in size."""
    found = []
    for i, size in enumerate(sizes):
        found.append(None if size is None else (1 + 99 * i) * drawn(size, size, seed=7 + i))
    return found


def quantised(x, factors, clip, bits, **options):
    """Return codes as int8 with their scale, from the kernel."""
    from tesseral.quantization.kernels.triton import rows

    working = torch.float32 if x.dtype == torch.float32 else torch.float16
    ready = rows.prepare(x.shape[-1], factors, working)
    with poisoned():
        found, scale = rows.quantize_rows(x, ready, clip, bits, **options)
    form = options.get("form", "bytes")
    if form == "pairs":
        return unpack(found, 4, x.shape[-1], signed=True), scale
    if form == "floats":
        return (512 * found.float()).to(torch.int8), scale / 512
    return found, scale


def assert_codes(found, x, factors, clip, bits):
    """Hold codes and scales to those of float64, by the error of a type as short as the rows'."""
    exact = PortableRows().quantize(x, [f if f is None else f.double() for f in factors],
                                    clip.double(), bits, {})  # fmt: skip
    peer = 2e-6 if x.dtype == torch.float32 else 3e-3
    torch.testing.assert_close(found[1].double(), exact[1], rtol=peer, atol=0)
    apart = (found[0].int() - exact[0].int()).abs()
    # a code may fall to its neighbour where the quotient lies that close to the middle
    assert apart.max() <= 1
    assert apart.double().mean() <= 2 * peer * 2 ** (bits - 1) + 1 / apart.numel()


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(16, 32), (12, 20), (9, 7), (None, 32), (8, None), (None, None)])
def test_rows_are_transformed_and_rounded(sizes, dtype):
    width = (sizes[0] or 8) * (sizes[1] or 16)
    x = (100 * drawn(5, width)).to(dtype)
    x[1] = 0
    x[2, 3] = 3e4
    clip = torch.tensor([0.9, 0.75], device=DEVICE)
    factors = factors_of(sizes)
    for bits in (4, 8):
        assert_codes(quantised(x, factors, clip, bits), x, factors, clip, bits)


@needs_kernels
@pytest.mark.parametrize("form", ["pairs", "floats"])
@pytest.mark.parametrize("sizes", [(16, 16), (12, 20)])
def test_codes_are_the_same_in_every_form(sizes, form):
    x = drawn(3, sizes[0] * sizes[1])
    clip = torch.ones(2, device=DEVICE)
    given = x, factors_of(sizes), clip, 4
    for found, expected in zip(quantised(*given, form=form), quantised(*given), strict=True):
        assert torch.equal(found, expected)


@needs_kernels
@pytest.mark.parametrize("sizes", [(8, 16), (6, 10)])
def test_a_norm_and_a_gate_are_joined(sizes):
    from tesseral.quantization.kernels.triton.rows import Norm

    x, gate = drawn(4, 2, sizes[0] * sizes[1]).unbind(1)  # rows that do not follow one another
    weight = drawn(x.shape[-1], seed=3).abs()
    given = factors_of(sizes), torch.ones(2, device=DEVICE), 8
    gated = torch.nn.functional.silu(gate.double()) * x.double()
    assert_codes(quantised(x, *given, gate=gate), gated.float(), *given)
    normed = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 0.1)
    found = quantised(x, *given, norm=Norm(weight=weight, epsilon=0.1))
    assert_codes(found, (normed * weight.double()).float(), *given)


@needs_kernels
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's casts
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_has_no_scale(bad):
    x = drawn(3, 64)
    x[1, 17] = bad
    for sizes in ((8, 8), (None, None)):
        scale = quantised(x, factors_of(sizes), torch.ones(2, device=DEVICE), 4)[1]
        assert scale.isnan().flatten().tolist() == [False, True, False]


@needs_kernels
def test_a_row_too_wide_for_a_program_goes_to_torch():
    assert "up to 256" in fits(600, (2, 300), torch.float16).reason
    for dtype, room in ((torch.float32, 2**12), (torch.bfloat16, 2**14)):
        assert fits(room, (None, None), dtype).ok
        assert "elements, padded" in fits(4 * room, (None, None), dtype).reason
    x, factors = drawn(2, 600), factors_of((2, 300))
    clip = torch.ones(2, device=DEVICE)
    found = TritonRows().quantize(x, factors, clip, 4, {})
    assert torch.equal(found[0], PortableRows().quantize(x, factors, clip, 4, {})[0])


def weights(length, outputs, *, bias=True):
    """Return codes of weights, and these as layers store them."""
    held, stored = [], []
    for i, n in enumerate(outputs):
        held.append(codes(n, length, seed=i + 1))
        scale = drawn(n, 1, seed=i).abs() + 0.1
        stored.append(
            StoredWeight(pack(held[-1], 4), scale, drawn(n) if bias and i else None, 4, length)
        )
    return held, stored


KERNELS = {
    "one": ("one_row", 1, {"block": (4, 8)}),
    "few": ("few_rows", 5, {"block": (16, 16, 32)}),
    "split": ("few_rows", 19, {"block": (16, 16, 32), "splits": 3, "stages": 2}),
    "many": ("many_rows", 37, {"block": (32, 32, 32), "group": 2, "stages": 2}),
    "floats": ("many_float_rows", 32, {}),
}


@needs_kernels
@pytest.mark.parametrize(("length", "outputs"), [(96, (33,)), (64, (20, 3, 18))], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_sums_are_exact_and_scaled(kernel, length, outputs):
    from tesseral.quantization.kernels.triton import products

    name, m, options = kernel
    floats = name == "many_float_rows"
    if floats and DEVICE == "cuda" and not gpu.has_float8():
        pytest.skip("there is no float8")
    outputs = (16, 32, 48)[: len(outputs)] if floats else outputs
    x = codes(m, length, bits=4 if floats else 8)
    scale, residual = drawn(m, 1), drawn(m, sum(outputs))
    held, stored = weights(length, outputs)
    together = products.side_by_side(stored)
    multiply = getattr(products, name)
    sums = (x.double() @ torch.cat(held).double().mT).long()
    if not floats:
        with poisoned():
            found = multiply(x, scale, together, torch.int32, **options)
        assert torch.equal(found.long(), sums)
    expected = sums.double() * scale.double() * together.scale.double()
    if together.bias is not None:
        expected += together.bias.double()
    expected += residual.double()
    dtype, loose = torch.float32, 1e-5
    if floats:
        x, scale = (x / 512).to(torch.float8_e4m3fn), 512 * scale
        dtype, loose, residual = torch.bfloat16, 2e-2, residual.bfloat16()
    for _ in range(2):  # the second finds what the first left behind
        with poisoned():
            found = multiply(x, scale, together, dtype, residual, **options).double()
        assert (found - expected).norm() < loose * expected.norm()
        assert (found - expected).abs().max() < loose * expected.abs().max()


@needs_kernels
def test_every_code_is_widened_to_what_it_stands_for():
    from tesseral.quantization.kernels.triton import products

    (held,), (stored,) = weights(16, (64,))
    held[:16] = torch.arange(-8, 8, device=DEVICE)
    together = products.side_by_side([stored._replace(codes=pack(held, 4))])
    assert torch.equal(products.widened(together, floats=False), held)
    assert torch.equal(512 * products.widened(together, floats=True).float(), held.float())


@needs_kernels
@pytest.mark.parametrize("m", [1, 3, 70])
def test_the_backend_gives_what_torch_gives(m, monkeypatch):
    monkeypatch.setattr(gpu, "has_float8", lambda: False)
    held, stored = weights(64, (16, 32, 8, 24))
    x, scale = codes(m, 64, bits=8), drawn(m, 1)
    portable = BACKENDS.get("portable")
    for dtype in (torch.float32, torch.float16):
        memo = {}
        found = TritonLinear().linears(x[None], scale[None], stored, dtype, memo)
        expected = portable.linears(x[None], scale[None], stored, dtype, {})
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-5 if dtype == torch.float32 else 1e-3,
                                       atol=1e-4)  # fmt: skip
    sums = TritonLinear().linear(x, stored[0].packed)
    assert torch.equal(sums.long().cpu(), x.long().cpu() @ held[0].long().cpu().mT)


@needs_kernels
def test_weights_that_change_are_read_again():
    (stored,) = weights(32, (16,))[1]
    x, scale, memo = codes(1, 32), torch.ones(1, 1, device=DEVICE), {}
    (first,) = TritonLinear().linears(x, scale, [stored], torch.float32, memo)
    stored.scale.mul_(2)
    (second,) = TritonLinear().linears(x, scale, [stored], torch.float32, memo)
    assert torch.equal(second, 2 * first)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 24])
def test_heads_are_transformed_and_packed(size, bits, dtype):
    x = (30 * drawn(2, 5, 3, size)).to(dtype).transpose(1, 2)
    matrix, clip = drawn(size, size, seed=4), torch.tensor([0.9, 0.8], device=DEVICE)
    problem = HeadsProblem(
        device=DEVICE, dtype=str(dtype).removeprefix("torch."), working_dtype="float32",
        head_dim=size, bits=bits,
    )  # fmt: skip
    for factor in (matrix, None):
        with poisoned():
            chosen = HEADS.choose(problem, "triton")
            found = encode_heads(x, clip, bits, factor=factor, backend=chosen)
        exact = encode_heads(
            x.double(), clip.double(), bits, factor=None if factor is None else factor.double()
        )
        assert found.shape == exact.shape
        loose = dtype != torch.float32
        torch.testing.assert_close(found.scale, exact.scale, rtol=4e-3 if loose else 1e-3, atol=0)
        apart = (found.codes().int() - exact.codes().int()).abs()
        assert apart.max() <= 1
        assert apart.double().mean() < (0.06 if loose else 0.004)


@needs_kernels
def test_new_tokens_are_rotated_and_stored_where_they_belong():
    from tesseral.quantization.kernels.triton import heads

    batch, tokens, q_heads, kv_heads, size, room = 2, 3, 4, 2, 16, 8
    states = drawn(batch, tokens, (q_heads + 2 * kv_heads) * size)
    parts = states.split([q_heads * size, kv_heads * size, kv_heads * size], -1)
    query, key, value = (part.unflatten(-1, (-1, size)) for part in parts)
    angles = drawn(1, tokens, size // 2, seed=5).repeat(1, 1, 2)
    turn = angles.cos(), angles.sin()
    q_matrix, k_matrix = drawn(2, size, size, seed=6)
    clips = torch.tensor([[0.9, 0.8], [0.7, 1.0]], device=DEVICE).unbind()
    caches = tuple(empty_cache((batch, kv_heads, room), size, bits) for bits in (4, 8))
    with poisoned():
        found, keys, values = heads.rotate_and_encode(
            (query, key, value), turn,
            (heads.prepare_matrix(q_matrix, torch.float32),
             heads.prepare_matrix(k_matrix, torch.float32)),
            clips, caches, torch.tensor([4], device=DEVICE), dense=True,
        )  # fmt: skip
    expected = [
        rotated(query, turn) @ q_matrix,
        encode_heads(rotated(key, turn), clips[0], 4, factor=k_matrix),
        encode_heads(value.transpose(1, 2), clips[1], 8),
    ]
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-4)
    for cache, dense, wanted in zip(caches, (keys, values), expected[1:], strict=True):
        step = cache.scale.max().item()
        stored = cache[:, :, 4:7].dequantize(torch.float32)
        torch.testing.assert_close(dense, stored, rtol=1e-5, atol=1e-5)
        apart = dense - wanted.dequantize(torch.float32)
        assert (apart.abs() < 1e-2 * step).double().mean() > 0.98
        assert not cache.data[:, :, :4].any()
        assert not cache.data[:, :, 7:].any()


def empty_cache(shape, size, bits):
    scale, offset = torch.zeros(2, *shape, 1, dtype=torch.float16, device=DEVICE)
    data = torch.zeros(*shape, packed_length(size, bits), dtype=torch.uint8, device=DEVICE)
    return PackedTensor(data=data, scale=scale, offset=offset, bits=bits, length=size)


def rotated(x, turn):
    x = x.transpose(1, 2)
    half = x.shape[-1] // 2
    return x * turn[0][:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * turn[1][:, None]


LINEAR = {"device": "cuda", "weight_bits": 4, "activation_bits": 4, "in_features": 64}
ROW = {"device": "cuda", "dtype": "float16", "working_dtype": "float32", "bits": 4}
HEAD = {"device": "cuda", "dtype": "float16", "working_dtype": "float32"} | {
    "head_dim": 64,
    "bits": 4,
}


@pytest.mark.parametrize(
    ("registry", "problem", "change", "reason"),
    [
        (BACKENDS, LinearProblem(**LINEAR), {"device": "mps"}, "runs on CUDA devices"),
        (BACKENDS, LinearProblem(**LINEAR), {"weight_bits": 8}, "reads 4-bit weights"),
        (BACKENDS, LinearProblem(**LINEAR), {"groups": 2}, "one scale a row"),
        (BACKENDS, LinearProblem(**LINEAR), {"in_features": 48}, "multiples of 32"),
        (ROWS, RowsProblem(**ROW), {"working_dtype": "float64"}, "computes in float32"),
        (ROWS, RowsProblem(**ROW), {"dtype": "float64"}, "got float64"),
        (HEADS, HeadsProblem(**HEAD), {"bits": 2}, "4 or 8 bits"),
        (HEADS, HeadsProblem(**HEAD), {"head_dim": 33}, "even sizes"),
        (HEADS, HeadsProblem(**HEAD), {"working_dtype": "float64"}, "computes in float32"),
    ],
)
def test_what_the_kernels_do_not_take_is_said(registry, problem, change, reason, monkeypatch):
    import dataclasses

    monkeypatch.setattr(cuda, "capability", lambda _: (9, 0))
    monkeypatch.setattr(runtime_triton, "installed", lambda *_: True)
    assert registry.get("triton").supports(problem).ok
    refused = dataclasses.replace(problem, **change)
    assert reason in registry.get("triton").supports(refused).reason
    with pytest.raises(BackendError, match="triton"):
        registry.choose(refused, "triton")


@pytest.mark.parametrize(
    ("capability", "reason"), [(None, "no CUDA device"), ((7, 5), "8.0, cuda has 7.5")]
)
def test_devices_are_asked(capability, reason, monkeypatch):
    monkeypatch.setattr(runtime_triton, "installed", lambda *_: True)
    monkeypatch.setattr(cuda, "capability", lambda _: capability)
    assert reason in BACKENDS.get("triton").supports(LinearProblem(**LINEAR)).reason
    assert BACKENDS.choose(LinearProblem(**LINEAR)).name in {"cuda-int4", "portable"}


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_become_numbers_rounded_once(bits, dtype):
    from tesseral.quantization.kernels.triton.dequantize import dequantize_heads, takes

    room = encode_heads(drawn(2, 3, 83, 64), torch.ones(2, device=DEVICE), bits)
    states = room[:, 1:, 5:75]  # neither the first nor whole blocks
    assert takes(states)
    with poisoned():
        got = dequantize_heads(states, dtype)
    exact = states.dequantize(torch.float64)
    assert got.shape == exact.shape
    assert got.dtype == dtype
    # a product and a sum in float32, then one rounding
    allowed = 2 * torch.finfo(torch.float32).eps * states.dequantize(torch.float32).abs().max()
    allowed = allowed + torch.finfo(dtype).eps / 2 * exact.abs()
    assert ((got.double() - exact).abs() <= allowed).all()


def test_codes_of_other_forms_are_left_to_others():
    from tesseral.quantization.kernels.triton.dequantize import takes

    states = encode_heads(drawn(1, 1, 4, 12), torch.ones(2, device=DEVICE), 4)
    assert not takes(states)  # twelve numbers a row are no power of two
    assert not takes(encode_heads(drawn(1, 1, 4, 16), torch.ones(2, device=DEVICE), 2))
