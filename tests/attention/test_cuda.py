"""The kernels in CUDA C++ against the oracle on a CUDA device; what they are asked, anywhere."""

import dataclasses

import numpy as np
import pytest
import torch

from attention.cases import make_inputs, oracle, plain, to_float64, visible
from attention.test_varlen import RULES, expected, make_packed, make_pool
from support.budget import assert_within_budget
from tesseral.attention import attention, attention_decode, attention_varlen
from tesseral.attention.backends.cuda import backend as backend_module
from tesseral.attention.backends.cuda.backend import (
    LONGEST,
    TuringBackend,
    VoltaBackend,
    VoltaHalfBackend,
)
from tesseral.attention.problem import AttentionProblem
from tesseral.attention.registry import BACKENDS
from tesseral.runtime.cuda import device as cuda

NAMES = ("turing", "volta", "volta_half")
TOLERANCE = {"turing": 4e-3, "volta": 4e-3, "volta_half": 3e-2}
DEVICE = "cuda:0"


def needs_device(test):
    """Mark a test as one of those that need a CUDA device, and skip it where there is none."""
    absent = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(absent, reason="needs a CUDA device")(test))


every_chip = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def _poison():
    """Fill memory that nobody has written yet with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def _splits(request, monkeypatch):
    """Share the keys of every call among as many blocks as a test asks for."""
    monkeypatch.setattr(backend_module, "count_splits", lambda *_: request.param)


def halves(arrays):
    """Return arrays as float16 on the device, and what they hold as float64."""
    there = [torch.asarray(array).half().to(DEVICE) for array in arrays]
    return there, [to_float64(array.cpu()) for array in there]


def on_device(options):
    return {
        name: torch.asarray(option).to(DEVICE) if isinstance(option, np.ndarray) else option
        for name, option in options.items()
    }


def close(got, wanted, tolerance):
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(to_float64(ours.cpu()), theirs, rtol=tolerance, atol=tolerance)


def seeded(*shape):
    return np.random.default_rng([3, *shape]).random(shape)


CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (90, 40)},
    "causal_window": {"window": (70, 3), "is_causal": True},
    "softcap": {"softcap": 3.0, "is_causal": True},
    "alibi": {"alibi_slopes": seeded(2, 4), "window": (-1, 50)},
    "sinks": {"sinks": np.array([0.5, -np.inf, 2.0, -1.0]), "is_causal": True},
    "negative": {"scale": -0.3},
    "zero": {"scale": 0.0},
    "boolean": {"mask": seeded(2, 1, 1, 300) < 0.5},
    "of_queries": {"mask": seeded(170, 1) < 0.5, "is_causal": True},
    "additive": {"mask": np.where(seeded(2, 4, 170, 300) < 0.7, seeded(170, 300), -np.inf)},
    "blocks": {"mask": np.kron(seeded(7, 9) < 0.3, np.ones((26, 35), bool))[:170, :300]},
    "blocks_of_heads": {
        "mask": np.where(
            np.kron(seeded(1, 4, 3, 4) < 0.3, np.ones((64, 80)))[..., :170, :300],
            seeded(170, 300),
            -np.inf,
        ),
        "is_causal": True,
    },
    "nothing": {"mask": np.zeros((170, 300), bool)},
    "additive_half": {"mask": seeded(170, 300).astype(np.float16)},
}


@needs_device
@every_chip
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("_splits", [1, 3], indirect=True)
@pytest.mark.usefixtures("_splits")
def test_every_rule_is_that_of_the_oracle(name, case):
    inputs, exact = halves(make_inputs(170, 300, head_dim=64))
    options = CASES[case]
    got = attention(*inputs, **on_device(options), return_lse=True, backend=name)
    close(got, oracle(*exact, **options), TOLERANCE[name])


SIZES = [
    (1, 1, 64, 64, 1), (1, 777, 128, 128, 4), (5, 300, 128, 128, 3), (64, 64, 256, 256, 1),
    (130, 97, 128, 64, 2), (97, 260, 80, 96, 4), (33, 100, 256, 136, 2), (200, 513, 8, 16, 8),
    (300, 200, 128, 128, 1), (1, 900, 256, 256, 8), (257, 129, 64, 64, 1),
]  # fmt: skip


@needs_device
@every_chip
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_size_is_within_the_budget_of_plain_code(name, causal, sizes):
    q_len, kv_len, head_dim, value_dim, group = sizes
    made = make_inputs(
        q_len, kv_len, q_heads=2 * group, head_dim=head_dim, value_dim=value_dim
    )  # fmt: skip
    inputs, exact = halves(made)
    got = attention(*inputs, is_causal=causal, return_lse=True, backend=name)
    wanted, wanted_lse = oracle(*exact, is_causal=causal)
    seen = torch.asarray(visible(q_len, kv_len, is_causal=causal), device=DEVICE)
    bias = torch.zeros(seen.shape, device=DEVICE).masked_fill(~seen, -torch.inf)
    peer = to_float64(plain(*inputs, bias).cpu())
    factor = 8.0 if name == "volta_half" else 2.0
    assert_within_budget(to_float64(got[0].cpu()), wanted, peer, factor=factor, floor=2**-11)
    tolerance = 1e-2 if name == "volta_half" else 1e-4
    np.testing.assert_allclose(to_float64(got[1].cpu()), wanted_lse, rtol=0, atol=tolerance)


@needs_device
@every_chip
def test_rising_scores_scale_the_sums_anew(name):
    inputs, exact = halves(make_inputs(140, 700, head_dim=128, order="rising"))
    got = attention(*inputs, return_lse=True, backend=name)
    # scores reach hundreds here, where float16 keeps no fractions
    close(got, oracle(*exact), 4e-3 if name != "volta_half" else 0.6)


@needs_device
@every_chip
def test_strides_of_the_inputs_do_not_matter(name):
    made = make_inputs(40, 90, head_dim=64)
    inputs, exact = halves(made)
    wanted = oracle(*exact, is_causal=True)[0]
    heads_last = [a.transpose(1, 2).contiguous().transpose(1, 2) for a in inputs]
    columns_first = [a.transpose(2, 3).contiguous().transpose(2, 3) for a in inputs]
    shifted = []
    for array in inputs:
        room = torch.empty(array.numel() + 3, dtype=array.dtype, device=DEVICE)
        shifted.append(room[3:].view(array.shape).copy_(array))
    for turned in (heads_last, columns_first, shifted):
        got = attention(*turned, is_causal=True, backend=name)
        np.testing.assert_allclose(to_float64(got.cpu()), wanted, atol=TOLERANCE[name])


@needs_device
@every_chip
@pytest.mark.usefixtures("_poison")
@pytest.mark.parametrize("paged", [False, True], ids=["packed", "paged"])
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("_splits", [1, 2], indirect=True)
@pytest.mark.usefixtures("_splits")
def test_sequences_are_attended_to_one_by_one(name, paged, rules):
    made, edges = make_packed()
    inputs, exact = halves(made)
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1], "backend": name}
    if paged:
        pools = [make_pool(to_float64(side.cpu()), edges[1]) for side in inputs[1:]]
        inputs = [inputs[0], *(torch.asarray(pool).half().to(DEVICE) for pool, _ in pools)]
        options["block_tables"] = pools[0][1]
    got = attention_varlen(*inputs, **options, **on_device(rules), return_lse=True)
    close(got, expected(exact, edges, rules), TOLERANCE[name])


@needs_device
@every_chip
def test_padded_batches_are_those_without_padding(name):
    made = make_inputs(60, 60, head_dim=128)
    inputs, exact = halves(made)
    mask = np.ones((2, 1, 60, 60), dtype=bool)
    mask[1, :, :, :23] = False  # on the left, as transformers pads
    got = attention(*inputs, mask=torch.asarray(mask).to(DEVICE), is_causal=True, backend=name)
    alone = oracle(*(a[1:, :, 23:] for a in exact), is_causal=True)[0]
    got = to_float64(got.cpu())
    np.testing.assert_allclose(got[1:, :, 23:], alone, atol=TOLERANCE[name])
    assert (got[1, :, :23] == 0).all()


@needs_device
@every_chip
def test_decoding_reads_pools(name):
    made, edges = make_packed([(1, 70), (1, 9), (1, 0), (1, 33)])
    inputs, exact = halves(made)
    pools = [make_pool(to_float64(side.cpu()), edges[1]) for side in inputs[1:]]
    got = attention_decode(
        inputs[0][:, None], *(torch.asarray(pool).half().to(DEVICE) for pool, _ in pools),
        block_tables=pools[0][1], seq_lens=np.diff(edges[1]), backend=name,
    )  # fmt: skip
    wanted = expected(exact, edges, {"is_causal": True})[0]
    np.testing.assert_allclose(to_float64(got[:, 0].cpu()), wanted, atol=TOLERANCE[name])


@needs_device
@every_chip
def test_results_do_not_change_from_run_to_run(name):
    inputs, _ = halves(make_inputs(200, 900, head_dim=128))
    first = attention(*inputs, backend=name)
    for _ in range(5):
        assert torch.equal(attention(*inputs, backend=name), first)


@needs_device
@every_chip
def test_gradients_flow(name):
    made = make_inputs(20, 40, head_dim=64)
    inputs, _ = halves(made)
    leaves = [array.requires_grad_() for array in inputs]
    attention(*leaves, is_causal=True, backend=name).float().square().sum().backward()
    doubles = [torch.asarray(array, dtype=torch.float64, requires_grad=True) for array in made]
    attention(*doubles, is_causal=True, backend="reference").square().sum().backward()
    for ours, theirs in zip(leaves, doubles, strict=True):
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=0.05, atol=0.05)


PROBLEM = AttentionProblem(
    batch=1, q_len=64, kv_len=64, q_heads=4, kv_heads=2, head_dim=64, value_dim=64,
    dtype="float16", device=DEVICE, scale=0.125,
)  # fmt: skip


@pytest.fixture
def _compiled(monkeypatch):
    """Let every architecture have a compiler."""
    monkeypatch.setattr(backend_module, "target", lambda *_: ("a compiler", "sm_70"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "bfloat16"}, "multiplies float16, not bfloat16"),
        ({"dtype": "float32"}, "multiplies float16, not float32"),
        ({"head_dim": 264}, "takes head dimensions of multiples of 8 up to 256"),
        ({"value_dim": 60}, "takes head dimensions of multiples of 8 up to 256"),
        ({"key_format": "packed4"}, "reads plain keys and values, not packed4"),
        ({"kv_len": LONGEST + 1}, "takes up to 536870912 keys, and rows of a group"),
        ({"batch": 40000}, "takes up to 65535 key heads, all batch entries counted"),
        ({"device": "cpu"}, "runs on CUDA devices, not on cpu"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("_compiled")
def test_what_cannot_run_is_refused_with_a_reason(monkeypatch, change, reason):
    monkeypatch.setattr(cuda, "capability", lambda _: (7, 5))
    for kind in (TuringBackend, VoltaBackend, VoltaHalfBackend):
        assert kind().supports(PROBLEM).ok
        assert kind().supports(dataclasses.replace(PROBLEM, **change)).reason == reason


@pytest.mark.usefixtures("_compiled")
def test_devices_that_are_too_old_are_refused(monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda _: (7, 0))
    assert VoltaBackend().supports(PROBLEM).ok
    assert TuringBackend().supports(PROBLEM).reason == (
        "needs compute capability 7.5, cuda:0 has 7.0"
    )
    monkeypatch.setattr(cuda, "capability", lambda _: None)
    assert VoltaBackend().supports(PROBLEM).reason == "torch sees no CUDA device of NVIDIA"


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda _: (7, 0))
    monkeypatch.setattr(backend_module, "target", lambda *_: None)
    assert VoltaBackend().supports(PROBLEM).reason == (
        "needs an NVRTC that compiles for compute capability 7.0, which CUDA 12 has: "
        "pip install 'tesseral[cuda]'"
    )


@pytest.mark.usefixtures("_compiled")
@pytest.mark.parametrize(("found", "chosen"), [((7, 0), "volta"), ((7, 5), "turing")])
def test_each_chip_gets_its_own_kernel(monkeypatch, found, chosen):
    monkeypatch.setattr(cuda, "capability", lambda _: found)
    assert BACKENDS.choose(PROBLEM).name == chosen


def test_few_rows_share_their_keys_among_blocks():
    decoding = dataclasses.replace(PROBLEM, q_len=1, kv_len=8192)
    chips = backend_module.TURING, backend_module.VOLTA
    for chip, splits in zip(chips, (20, 32), strict=True):
        assert backend_module.count_splits(decoding, chip.tiles(decoding), 40) == splits
    short = dataclasses.replace(decoding, kv_len=500)
    assert backend_module.count_splits(short, chips[0].tiles(short), 40) == 1
    long = dataclasses.replace(decoding, q_len=8192)
    assert backend_module.count_splits(long, chips[0].tiles(long), 40) == 1
