"""The Triton kernels against the oracle: on a CUDA device, else small in Triton's interpreter.

Where Triton is not installed, only what it is asked beforehand is tested.
"""

import contextlib
import dataclasses
import json
from importlib import resources

import numpy as np
import pytest
import torch

from attention.cases import make_inputs, oracle, to_float64, visible
from attention.test_gradients import OPTIONS, definition, gradients
from attention.test_packed import quantize, to_torch
from attention.test_varlen import RULES, expected, make_packed, make_pool
from support.kernels import kernels, needs_kernels
from tesseral.attention import attention, attention_varlen
from tesseral.attention.backends.triton import backend as backend_module
from tesseral.attention.backends.triton.backend import TritonBackend, TritonPlan
from tesseral.attention.backends.triton.tuning import (
    TileConfig,
    case_of,
    choose_tiles,
    count_splits,
    padded,
)
from tesseral.attention.problem import AttentionArrays, AttentionProblem, state_problem
from tesseral.runtime import triton as runtime_triton
from tesseral.runtime.cuda import device as cuda

DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
TILES = {
    "described": ("tiles", TileConfig(q_tile=32, k_tile=16, warps=4, stages=2, describe=True), 1),
    "pointers": ("tiles", TileConfig(q_tile=32, k_tile=16, warps=4, stages=2), 1),
    "rows": ("rows", TileConfig(q_tile=16, k_tile=16, warps=4, stages=2), 1),
    "split": ("rows", TileConfig(q_tile=16, k_tile=16, warps=4, stages=2), 3),
}
every_kernel = pytest.mark.parametrize("tiles", TILES.values(), ids=TILES.keys())


@pytest.fixture(scope="module")
def _kernels():
    with kernels():
        yield


@contextlib.contextmanager
def poisoned():
    """Fill memory that nobody has written yet with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def plan_of(kernel, config, splits):
    return TritonPlan(
        batch_tile=1, head_tile=1, q_tile=config.q_tile, k_tile=config.k_tile, workspace_bytes=0,
        kernel=kernel, config=config, splits=splits,
    )  # fmt: skip


def on_device(thing, dtype=None):
    if not isinstance(thing, (torch.Tensor, np.ndarray)):
        return thing
    if isinstance(thing, np.ndarray):
        thing = torch.asarray(thing)
    return thing.to(DEVICE, dtype if thing.is_floating_point() else None)


def forward(inputs, tiles, dtype=torch.float32, **options):
    """Return output and lse of one kernel, on the host."""
    arrays = [on_device(array, dtype) for array in inputs]
    rules = {"is_causal": False, "scale": None, "window": None, "softcap": None}
    rules |= {name: options.pop(name) for name in list(options) if name in rules}
    given = {name: on_device(option) for name, option in options.items()}
    call = AttentionArrays(**dict(zip(("query", "key", "value"), arrays, strict=True)), **given)
    with poisoned():
        output, lse = TritonBackend().forward(state_problem(call, **rules), call, plan_of(*tiles))
    return to_float64(output.cpu()), to_float64(lse.cpu())


def assert_close(got, wanted, tolerance=2e-5):
    for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def seeded(*shape):
    return np.random.default_rng([3, *shape]).random(shape)


HEADS = {"q_heads": 2, "kv_heads": 1}
BLOCKY = np.kron(seeded(3, 5) < 0.5, np.ones((15, 14), dtype=bool))
LOWEST = np.zeros((45, 70), dtype=np.float32)
LOWEST[:3] = np.finfo(np.float32).min
CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"window": (9, 4)},
    "causal_window": {"window": (12, 3), "is_causal": True},
    "softcap": {"softcap": 3.0, "is_causal": True},
    "alibi": {"alibi_slopes": seeded(2, 2), "window": (-1, 5)},
    "sinks": {"sinks": np.array([0.5, -np.inf]), "is_causal": True},
    "negative": {"scale": -0.3},
    "boolean": {"mask": seeded(2, 1, 45, 70) < 0.5},
    "of_queries": {"mask": seeded(45, 1) < 0.5, "is_causal": True},
    "blocky": {"mask": BLOCKY},
    "additive": {"mask": np.where(BLOCKY, seeded(2, 45, 70), -np.inf), "window": (20, 9)},
    "lowest": {"mask": LOWEST},
}
FEW_CASES = {
    "split": ("sinks", "lowest"),
    "pointers": ("plain", "causal_window", "boolean", "additive"),
}


@needs_kernels
@pytest.mark.parametrize(
    ("tiles", "case"),
    [
        (tiles, case)
        for tiles in TILES
        for case in CASES
        # merging takes the interpreter long, and is the same for all rules; pointers differ from
        # descriptions in how a tile is loaded, where its edges are hidden and where they are not
        if case in FEW_CASES.get(tiles, CASES)
    ],
)
def test_every_rule_is_that_of_the_oracle(tiles, case):
    tiles, options = TILES[tiles], CASES[case]
    inputs = make_inputs(45, 70, order="rising", **HEADS)
    inputs = [array.astype(np.float32) for array in inputs]
    assert_close(forward(inputs, tiles, **options), oracle(*inputs, **options))


@needs_kernels
@pytest.mark.parametrize(
    ("tiles", "sizes"),
    [
        *((tiles, (50, 20, 40, 12)) for tiles in ("described", "pointers", "rows")),
        *((tiles, (33, 48, 16, 24)) for tiles in ("described", "rows")),
        *((tiles, (1, 65, 21, 16)) for tiles in TILES),
    ],
)
def test_sizes_that_no_tile_fits(tiles, sizes):
    tiles = TILES[tiles]
    q_len, kv_len, head_dim, value_dim = sizes
    inputs = make_inputs(q_len, kv_len, head_dim=head_dim, value_dim=value_dim, **HEADS)
    wanted = oracle(*inputs, is_causal=True)
    assert_close(forward(inputs, tiles, is_causal=True), wanted)


@needs_kernels
@every_kernel
def test_half_types_round_weights_only_once(tiles):
    inputs = [to_float64(torch.asarray(a).half()) for a in make_inputs(25, 70, **HEADS)]
    got = forward(inputs, tiles, torch.float16, is_causal=True)
    assert_close(got, oracle(*inputs, is_causal=True), 4e-3)


@needs_kernels
def test_strides_of_the_inputs_do_not_matter():
    inputs = make_inputs(20, 40)
    turned = [torch.asarray(a).float().transpose(1, 3).contiguous().transpose(1, 3) for a in inputs]
    rules = {"is_causal": True, "backend": "triton"}
    expanded = torch.asarray(inputs[1][:1]).float().expand(2, -1, -1, -1)
    got = attention(*(on_device(a) for a in turned), **rules)
    np.testing.assert_allclose(to_float64(got.cpu()), oracle(*inputs, is_causal=True)[0], atol=2e-5)
    got = attention(*(on_device(a) for a in (turned[0], expanded, expanded)), **rules)
    wanted = oracle(inputs[0], to_float64(expanded), to_float64(expanded), is_causal=True)[0]
    np.testing.assert_allclose(to_float64(got.cpu()), wanted, atol=2e-5)


@pytest.fixture
def _small_tiles(request, monkeypatch):
    """Let every call take the tiles that a test is run for."""
    kernel, config, splits = request.param
    plan = backend_module._plan

    def small(problem, *, paged):
        own = plan(problem, paged=paged)
        coded = {problem.key_format, problem.value_format} != {"dense"}
        kind = "rows" if paged or coded or problem.kv_len == 0 else kernel
        small_config = config if kind == kernel else dataclasses.replace(config, q_tile=16)
        return dataclasses.replace(own, kernel=kind, config=small_config, splits=splits)

    monkeypatch.setattr(backend_module, "_plan", small)


@needs_kernels
@pytest.mark.parametrize(
    ("_small_tiles", "paged"),
    # a pool of blocks is always read by rows
    [
        pytest.param(tiles, paged, id=f"{name}-{'paged' if paged else 'packed'}")
        for name, tiles in TILES.items()
        for paged in (False, True)
        if not paged or tiles[0] == "rows"
    ],
    indirect=["_small_tiles"],
)
@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("rules", [RULES["window"], RULES["all"]], ids=["window", "all"])
def test_sequences_are_attended_to_one_by_one(paged, rules):
    inputs, edges = make_packed()
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1], "backend": "triton"}
    arrays = inputs
    if paged:
        pools = [make_pool(side, edges[1]) for side in inputs[1:]]
        arrays = [inputs[0], *(pool for pool, _ in pools)]
        options["block_tables"] = pools[0][1]
    given = {name: on_device(rule) for name, rule in rules.items()}
    arrays = [on_device(array, torch.float32) for array in arrays]
    got = attention_varlen(*arrays, **options, **given, return_lse=True)
    assert_close([to_float64(part.cpu()) for part in got], expected(inputs, edges, rules))


@needs_kernels
def test_what_follows_a_packed_sequence_is_not_read():
    (query, key, value), edges = make_packed([(5, 20), (3, 9)])
    wanted = oracle(*(a[None].transpose(0, 2, 1, 3) for a in (query[:5], key[:20], value[:20])))[0]
    value[20:] = np.nan
    arrays = [on_device(array, torch.float32) for array in (query, key, value)]
    for tiles in TILES.values():
        call = AttentionArrays(query=arrays[0], key=arrays[1], value=arrays[2])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backend_module, "_plan", lambda *_, tiles=tiles, **__: plan_of(*tiles))
            got = attention_varlen(
                call.query, call.key, call.value, cu_seqlens_q=edges[0], cu_seqlens_k=edges[1],
                backend="triton",
            )  # fmt: skip
        np.testing.assert_allclose(
            to_float64(got[:5].cpu()).transpose(1, 0, 2), wanted[0], atol=2e-5
        )


@needs_kernels
@pytest.mark.parametrize(("splits", "head_dim"), [(1, 16), (3, 21)])
@pytest.mark.parametrize("symmetric", [False, True], ids=["offset", "symmetric"])
@pytest.mark.parametrize("bits", [(4, 4), (8, 8), (8, None), (None, 4)], ids=str)
def test_codes_stand_for_their_values(splits, symmetric, bits, head_dim):
    query, *sides = make_inputs(3, 50, head_dim=head_dim, value_dim=24)
    sides = [
        side if b is None else quantize(side, b, groups=1, symmetric=symmetric)
        for side, b in zip(sides, bits, strict=True)
    ]
    numbers = [s if b is None else s.dequantize() for s, b in zip(sides, bits, strict=True)]
    mask = seeded(2, 1, 3, 50) < 0.6
    call = [
        on_device(side, torch.float32) if b is None else packed_on_device(side)
        for side, b in zip(sides, bits, strict=True)
    ]
    config = TileConfig(q_tile=16, k_tile=16, warps=4, stages=2)
    arrays = AttentionArrays(
        query=on_device(query, torch.float32), key=call[0], value=call[1], mask=on_device(mask)
    )
    problem = state_problem(arrays, is_causal=True, scale=None, window=None, softcap=None)
    got = TritonBackend().forward(problem, arrays, plan_of("rows", config, splits))
    wanted = oracle(query, *numbers, mask=mask, is_causal=True)
    assert_close([to_float64(part.cpu()) for part in got], wanted, 1e-4)


@needs_kernels
@pytest.mark.parametrize(
    ("sizes", "dtype", "tolerance"),
    [
        ([1e-20], torch.float32, 1e-5),
        ([0.0], torch.float32, 0.0),
        ([0.0, 1e-12, 1.0, 1e4], torch.float32, 1e-5),
        ([1e-5], torch.float16, 1e-2),  # weights times scales would be subnormal
    ],
    ids=str,
)
def test_scales_of_values_may_have_any_size(sizes, dtype, tolerance):
    query, key, value = make_inputs(3, 50, **HEADS)
    packed = quantize(value, 4, groups=1)
    factors = np.resize(sizes, packed.scale.shape)
    packed = dataclasses.replace(
        packed, scale=packed.scale * factors, offset=packed.offset * factors
    )
    arrays = AttentionArrays(
        query=on_device(query, dtype),
        key=on_device(key, dtype),
        value=packed_on_device(packed),
    )
    problem = state_problem(arrays, is_causal=False, scale=None, window=None, softcap=None)
    output, lse = TritonBackend().forward(problem, arrays, plan_of(*TILES["split"]))
    wanted = oracle(query, key, packed.dequantize())
    np.testing.assert_allclose(to_float64(lse.cpu()), wanted[1], atol=max(tolerance, 1e-5))
    bound = tolerance * np.abs(wanted[0]).max()
    np.testing.assert_allclose(to_float64(output.cpu()), wanted[0], rtol=1e-4, atol=bound)


def packed_on_device(packed):
    packed = to_torch(packed)
    parts = {name: getattr(packed, name) for name in ("data", "scale", "offset")}
    return dataclasses.replace(
        packed, **{name: None if p is None else p.to(DEVICE) for name, p in parts.items()}
    )


@needs_kernels
@pytest.mark.parametrize(
    ("name", "describe"),
    [
        *((name, True) for name in ("full", "window", "softcap", "boolean", "bias", "sinks")),
        ("causal", False),
    ],
)
def test_gradients_are_those_of_the_oracle(monkeypatch, describe, name):
    from tesseral.attention.backends.triton import launch

    config = TileConfig(q_tile=16, k_tile=32, warps=4, stages=1, describe=describe)
    monkeypatch.setattr(launch, "choose_tiles", lambda *_: config)
    inputs = [torch.asarray(array).float() for array in make_inputs(20, 40)]
    options = OPTIONS[name]

    def ours(*arrays, **given):
        given = {key: on_device(option) for key, option in given.items()}
        arrays = [array.to(DEVICE) for array in arrays]
        parts = attention(*arrays, **given, return_lse=True, backend="triton")
        return [part.cpu() for part in parts]

    exact = {
        key: option.double() if torch.is_tensor(option) and option.dtype != torch.bool else option
        for key, option in options.items()
    }
    got = gradients(ours, inputs, options)
    wanted = gradients(definition, [array.double() for array in inputs], exact)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("rules", [{}, {"is_causal": True}, {"window": (20, 9)}], ids=str)
def test_the_lists_of_a_mask_are_its_partial_and_full_tiles(rules):
    from tesseral.attention.backends.triton import tiles

    mask = torch.asarray(BLOCKY).to(DEVICE)[None, None].expand(2, 4, 45, 70)
    query, key, value = (on_device(array, torch.float32) for array in make_inputs(45, 70))
    arrays = AttentionArrays(query=query, key=key, value=value, mask=mask)
    rules = {"is_causal": False, "window": None, **rules}
    problem = state_problem(arrays, **rules, scale=None, softcap=None)
    config = TileConfig(q_tile=16, k_tile=16, warps=4, stages=2)
    spread, _ = tiles.dense_mask(problem, arrays)
    lists = tiles._mask_lists(problem, spread, config)
    assert len(lists.counts) == 3  # one mask for both batches and all heads
    seen = BLOCKY & visible(45, 70, **rules)
    for tile, (partial, full) in enumerate(lists.counts.tolist()):
        rows = seen[tile * 16 : tile * 16 + 16]
        kinds = {"partial": [], "full": []}
        for number in range(5):
            part = rows[:, number * 16 : number * 16 + 16]
            whole = part.all() and part.shape[1] == 16
            if part.any():
                kinds["full" if whole else "partial"].append(number)
        assert lists.partial_tiles[tile, :partial].tolist() == kinds["partial"]
        assert lists.full_tiles[tile, :full].tolist() == kinds["full"]


PROBLEM = AttentionProblem(
    batch=1, q_len=4096, kv_len=4096, q_heads=32, kv_heads=8, head_dim=128, value_dim=128,
    dtype="float16", device="cuda:0", causal=True, scale=0.1,
)  # fmt: skip


@pytest.fixture
def _hopper(monkeypatch):
    """Pretend that Triton is there and that the device is an H100 or H200."""
    monkeypatch.setattr(runtime_triton, "installed", lambda *_: True)
    monkeypatch.setattr(cuda, "capability", lambda _: (9, 0))
    monkeypatch.setattr(cuda, "multiprocessors", lambda _: 132)


@pytest.mark.usefixtures("_hopper")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"head_dim": 264}, "up to 256"),
        ({"value_dim": 300}, "up to 256"),
        ({"key_format": "packed2"}, "not packed2"),
        ({"value_format": "packed4x2"}, "not packed4x2"),
        ({"device": "xpu:0"}, "not on xpu:0"),
    ],
    ids=str,
)
def test_a_refusal_has_its_reason(change, reason):
    assert TritonBackend().supports(PROBLEM).ok
    verdict = TritonBackend().supports(dataclasses.replace(PROBLEM, **change))
    assert not verdict.ok
    assert reason in verdict.reason


@pytest.mark.usefixtures("_hopper")
def test_a_device_that_is_too_old_or_missing_is_a_refusal(monkeypatch):
    monkeypatch.setattr(cuda, "capability", lambda _: (7, 5))
    assert (
        "needs compute capability 8.0, cuda:0 has 7.5" in TritonBackend().supports(PROBLEM).reason
    )
    monkeypatch.setattr(cuda, "capability", lambda _: None)
    assert "torch sees no CUDA device" in TritonBackend().supports(PROBLEM).reason
    monkeypatch.setattr(runtime_triton, "installed", lambda module="triton": module != "triton")
    assert "pip install 'tesseral[triton]'" in TritonBackend().supports(PROBLEM).reason


def test_the_cpu_is_left_to_others(monkeypatch):
    monkeypatch.setattr(runtime_triton, "interpreted", lambda: False)
    verdict = TritonBackend().supports(dataclasses.replace(PROBLEM, device="cpu"))
    assert not verdict.ok


@pytest.mark.parametrize(("q_len", "rows"), [(1, 8), (2, 8), (3, 16)])
def test_tiles_have_no_more_rows_than_few_need(q_len, rows, monkeypatch):
    monkeypatch.setattr(runtime_triton, "version", lambda: (3, 6))
    few = dataclasses.replace(PROBLEM, q_len=q_len)  # four query heads share a key head
    assert choose_tiles(few, "rows", (9, 0)).q_tile == rows
    assert choose_tiles(few, "rows", (8, 0)).q_tile == rows
    monkeypatch.setattr(runtime_triton, "version", lambda: (3, 4))
    assert choose_tiles(few, "rows", (9, 0)).q_tile == 16


@pytest.mark.usefixtures("_hopper")
def test_few_rows_codes_and_pools_share_one_read_of_their_keys():
    def kernel(**change):
        return TritonBackend().plan(dataclasses.replace(PROBLEM, **change)).kernel

    assert kernel() == "tiles"
    assert kernel(q_len=8) == "rows"
    assert kernel(q_len=9) == "tiles"
    assert kernel(key_format="packed4") == kernel(value_format="packed8") == "rows"
    assert kernel(kv_len=0) == "rows"
    assert backend_module._plan(PROBLEM, paged=True).kernel == "rows"


def test_measured_tiles_are_read_and_others_are_careful():
    measured = choose_tiles(PROBLEM, "tiles", (9, 0))
    assert measured.describe
    short = dataclasses.replace(PROBLEM, kv_len=2048)
    assert choose_tiles(short, "tiles", (9, 0)).q_tile > measured.q_tile
    capped = dataclasses.replace(short, softcap=5.0)  # of which only long ones were measured
    assert choose_tiles(capped, "tiles", (9, 0)) == measured
    assert not choose_tiles(PROBLEM, "tiles", (8, 0)).describe
    for dtype, size in (("float16", 2), ("float32", 4)):
        for width in (16, 64, 80, 128, 256):
            problem = dataclasses.replace(PROBLEM, dtype=dtype, head_dim=width, value_dim=width)
            config = choose_tiles(problem, "tiles", (8, 9))
            row = padded(width) * size
            held = row * (config.q_tile + 2 * config.k_tile * config.stages)
            assert held <= 99 * 1024


@pytest.mark.parametrize("file", ["sm90.json"])
def test_a_data_file_says_where_and_when_it_was_measured(file):
    text = resources.files("tesseral.attention.backends.triton") / "tuned" / file
    data = json.loads(text.read_text(encoding="utf-8"))
    assert "H200" in data["machine"]
    assert data["date"].startswith("20")
    for case, config in data["cases"].items():
        assert case.split()[0] in ("tiles", "rows", "gradients")
        assert TileConfig(**config).q_tile >= 16
    assert case_of(PROBLEM, "tiles") in data["cases"]


@pytest.mark.usefixtures("_hopper")
def test_long_keys_of_few_rows_are_shared_among_programs():
    config = TileConfig(q_tile=16, k_tile=64, warps=4, stages=2, waves=4)
    one = dataclasses.replace(PROBLEM, q_len=1)
    assert count_splits(dataclasses.replace(one, kv_len=100), config) == 1
    assert count_splits(dataclasses.replace(one, kv_len=8192), config) == 32
    assert count_splits(dataclasses.replace(one, kv_len=2**20), config) == 66
    # 79 tiles for at most 19 programs: 5 each, and so 16 programs
    assert count_splits(dataclasses.replace(one, kv_len=5000), config) == 16
    assert count_splits(dataclasses.replace(one, kv_len=2**20, batch=100), config) == 1
