"""How the native kernels cut calls: by the caches, evenly, and no reading twice."""

import pytest

from tesseral.attention import native_plan
from tesseral.attention.native_plan import (
    L2_SHARES,
    ROW_MULTIPLE,
    STREAM_ROWS,
    TILE_ROWS,
    TILED_STREAM_ROWS,
    bf16_dot_pays,
    plan_native,
)
from tesseral.attention.problem import AttentionProblem
from tesseral.runtime.cpu import CacheSizes, supported_targets

LARGE = CacheSizes(l1d=48 * 1024, l2=2**21, l3=2**25, source="sysfs")
SMALL = CacheSizes(l1d=32 * 1024, l2=2**18, l3=2**23, source="sysfs")


def plan(caches=LARGE, threads=2, target="scalar", **changes):
    fields = {
        "batch": 1,
        "q_len": 1024,
        "kv_len": 1024,
        "q_heads": 8,
        "kv_heads": 8,
        "head_dim": 128,
        "value_dim": 128,
        "dtype": "float32",
        "device": "cpu",
        "causal": True,
        "scale": 0.1,
    }
    return plan_native(AttentionProblem(**fields | changes), caches, target, threads)


@pytest.mark.parametrize("group", [1, 2, 5, 7])
@pytest.mark.parametrize("q_len", [97, 1024, 1030, 4096])
def test_strips_are_about_equally_long(q_len, group):
    cut = plan(q_len=q_len, kv_len=q_len, q_heads=2 * group, kv_heads=2)
    strips = -(-q_len // cut.q_tile)
    last = q_len - (strips - 1) * cut.q_tile
    assert cut.q_tile - last <= strips * ROW_MULTIPLE


@pytest.mark.parametrize("target", supported_targets())
def test_strips_and_blocks_follow_the_cache(target):
    strip, block = L2_SHARES.get(target, (0.5, 0.25))
    row = 4 * 256
    large, small = (plan(of, target=target, q_len=32768, kv_len=32768) for of in (LARGE, SMALL))
    for cut, l2 in ((large, LARGE.l2), (small, SMALL.l2)):
        assert strip * l2 / 2 <= cut.strip_rows * row <= strip * l2 + ROW_MULTIPLE * row
        assert cut.k_tile * row <= block * l2
    assert small.k_tile < large.k_tile


def test_every_thread_finds_several_strips():
    cut = plan(q_heads=1, kv_heads=1, threads=4, q_len=2048, kv_len=2048)
    assert 2048 / cut.q_tile >= 8


def test_few_rows_read_the_keys_in_place_and_once():
    cut = plan(q_len=STREAM_ROWS, kv_len=4096)
    assert cut.kernel == "streamed"
    assert cut.q_tile == STREAM_ROWS
    assert plan(q_len=STREAM_ROWS + 1, kv_len=4096).kernel == "packed"


@pytest.mark.parametrize(
    ("target", "streamed", "pays"),
    [
        ("amx", False, True),
        ("amx", True, False),
        ("avx512_bf16", False, False),
        ("avx512_bf16", True, False),
        ("avx512", True, False),
    ],
)
def test_fast_tiles_do_not_speak_for_vectors(monkeypatch, target, streamed, pays):
    rates = {("dot_bf16", "amx"): 3349.0, ("dot_bf16", "avx512_bf16"): 112.0}
    monkeypatch.setattr(
        native_plan,
        "_rate",
        lambda kind, of: 220.0 if kind == "fma_fp32" else rates.get((kind, of), 0.0),
    )
    assert bf16_dot_pays.__wrapped__(target, streamed=streamed) is pays


@pytest.mark.skipif("amx" not in supported_targets(), reason="needs a chip with AMX")
def test_bfloat16_of_many_rows_goes_to_tiles_where_the_chip_has_them():
    cut = plan(target="amx", dtype="bfloat16", q_len=4096, kv_len=4096)
    assert cut.kernel == "tiles"
    assert cut.bf16_dot
    assert cut.strip_rows % TILE_ROWS == 0
    assert cut.strip_rows * (2 + 4) * 128 <= LARGE.l2 // 2
    for q_len, kernel in ((TILED_STREAM_ROWS, "streamed"), (TILED_STREAM_ROWS + 1, "tiles")):
        assert plan(target="amx", dtype="bfloat16", q_len=q_len).kernel == kernel
    for dtype in ("float32", "float16"):
        assert plan(target="amx", dtype=dtype).kernel == "packed"
