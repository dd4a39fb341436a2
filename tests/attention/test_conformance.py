"""What every backend owes at every entry: masks that broadcast, rows that see nothing."""

import numpy as np
import pytest
import torch

from attention.cases import make_inputs, oracle, plain, skip_refusals, to_float64, visible
from attention.test_packed import quantize, to_torch
from attention.test_varlen import make_packed, make_pool
from support.budget import assert_within_budget
from tesseral.attention import attention, attention_decode, attention_varlen
from tesseral.attention.registry import BACKENDS

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def seeded(*key):
    return np.random.default_rng([7, *key])


MASK_SHAPES = [(), (45,), (1,), (21, 1), (21, 45), (4, 1, 45), (2, 1, 1, 45), (2, 4, 21, 45)]
every_backend = pytest.mark.parametrize("backend", BACKENDS.names)
every_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def call(backend, *arrays, **options):
    with skip_refusals():
        return attention(*arrays, **options, return_lse=True, backend=backend)


def check(backend, dtype, inputs, mask, **options):
    """Compare a masked call with the oracle, within the budget of plain code."""
    query, key, value = (torch.asarray(array).to(dtype) for array in inputs)
    output, lse = call(backend, query, key, value, mask=mask, **options)
    expected, expected_lse = oracle(query, key, value, mask=mask, **options)
    scores = (query.shape[2], key.shape[2])
    bias = torch.zeros(scores).masked_fill_(torch.asarray(~visible(*scores, **options)), -np.inf)
    hidden = mask.logical_not() if mask.dtype == torch.bool else torch.zeros(())
    bias = bias.masked_fill(hidden, -np.inf) if mask.dtype == torch.bool else bias + mask
    peer = plain(query, key, value, bias)
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    largest = (query.norm(dim=-1).max() * key.norm(dim=-1).max()).item() / query.shape[3] ** 0.5
    floor = torch.finfo(precise).eps * largest + 2 * torch.finfo(dtype).eps
    assert output.dtype == dtype
    assert_within_budget(to_float64(output), expected, to_float64(peer), floor=floor)
    precision = 1e-12 if dtype == torch.float64 else 2e-5
    np.testing.assert_allclose(to_float64(lse), expected_lse, rtol=precision, atol=precision)


@every_backend
@every_dtype
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
class TestMasksThatBroadcast:
    @pytest.mark.parametrize("rules", [{}, {"is_causal": True}], ids=["alone", "causal"])
    def test_boolean(self, backend, dtype, shape, rules):
        mask = torch.asarray(seeded(*shape).random(shape) < 0.6)
        check(backend, dtype, make_inputs(21, 45), mask, **rules)

    @pytest.mark.parametrize("kind", ["own", "float32"])
    def test_additive_with_hidden_entries(self, backend, dtype, shape, kind):
        rng = seeded(*shape)
        mask = np.where(rng.random(shape) < 0.8, rng.standard_normal(shape), -np.inf)
        mask = torch.asarray(mask).to(dtype if kind == "own" else torch.float32)
        check(backend, dtype, make_inputs(21, 45, order="rising"), mask, window=(30, 5))


@every_backend
@every_dtype
def test_strides_of_a_mask_do_not_matter(backend, dtype):
    mask = torch.asarray(seeded().random((2, 4, 21, 45)) < 0.6)
    wide = torch.zeros(2, 4, 21, 90, dtype=torch.bool)
    wide[..., ::2] = mask
    turned = mask.transpose(1, 3).contiguous().transpose(1, 3)
    arrays = [torch.asarray(array).to(dtype) for array in make_inputs(21, 45)]
    expected, _ = call(backend, *arrays, mask=mask)
    for same in (wide[..., ::2], turned):
        torch.testing.assert_close(call(backend, *arrays, mask=same)[0], expected)
    one_row = mask[:, :1, :1].expand(2, 4, 21, 45)  # strides of zero
    expected, _ = call(backend, *arrays, mask=mask[:, :1, :1])
    torch.testing.assert_close(call(backend, *arrays, mask=one_row)[0], expected)
    bias = torch.asarray(seeded().standard_normal((2, 4, 21, 45))).to(dtype)
    expected, _ = call(backend, *arrays, mask=bias)
    turned = bias.transpose(1, 3).contiguous().transpose(1, 3)
    torch.testing.assert_close(call(backend, *arrays, mask=turned)[0], expected)


BLIND = torch.zeros(40, dtype=torch.bool)
BLIND[[0, 9, 10, 17, 39]] = True
HIDING = {
    "boolean": {"mask": ~BLIND[:, None]},
    "additive": {"mask": torch.zeros(40, 1).masked_fill_(BLIND[:, None], -torch.inf)},
    "of_one_batch_and_head": {"mask": torch.ones(2, 4, 1, 1, dtype=torch.bool)},
    "causal": {"is_causal": True},
    "window": {"window": (0, 4)},
}
HIDING["of_one_batch_and_head"]["mask"][1, 2] = False


@every_backend
@every_dtype
@pytest.mark.parametrize(
    ("hide", "q_len"),
    # one query stands beside the last key, so no rule hides all from it
    [(hide, q_len) for hide in HIDING for q_len in (1, 40) if q_len > 1 or "mask" in HIDING[hide]],
)
@pytest.mark.parametrize("sinks", [False, True], ids=["bare", "sinks"])
def test_rows_that_see_nothing_are_zero(backend, dtype, hide, q_len, sinks):
    options = dict(HIDING[hide])
    kv_len = 30 if "mask" in options else 10
    if "mask" in options and options["mask"].ndim == 2:
        options["mask"] = options["mask"][:q_len]
    arrays = [torch.asarray(array).to(dtype) for array in make_inputs(q_len, kv_len)]
    if hide == "of_one_batch_and_head":
        blind = torch.zeros(2, 4, q_len, dtype=torch.bool)
        blind[1, 2] = True
    elif "mask" in options:
        blind = BLIND[:q_len].expand(2, 4, q_len)
    else:
        seen = torch.asarray(visible(q_len, kv_len, **options).any(1))
        blind = ~seen.expand(2, 4, q_len)
    logits = torch.tensor([0.5, -1.5, 0.0, -torch.inf]) if sinks else torch.full((4,), -torch.inf)
    output, lse = call(backend, *arrays, **options, sinks=logits if sinks else None)
    assert blind.any()
    assert (output[blind] == 0).all()
    assert torch.equal(lse[blind], logits[:, None].expand(2, 4, q_len)[blind].to(lse.dtype))
    assert output.isfinite().all()
    assert lse[~blind].isfinite().all()
    assert (output[~blind] != 0).any(-1).all()


@every_backend
@every_dtype
@pytest.mark.parametrize("sizes", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("sinks", [None, torch.ones(4)], ids=["bare", "sinks"])
def test_empty_axes_give_empty_or_zero_outputs(backend, dtype, sizes, sinks):
    batch, q_len, kv_len = sizes
    arrays = make_inputs(q_len, kv_len, batch=batch, value_dim=24)
    arrays = [torch.asarray(array).to(dtype) for array in arrays]
    output, lse = call(backend, *arrays, sinks=sinks, is_causal=True)
    assert output.shape == (batch, 4, q_len, 24)
    assert (output == 0).all()
    assert torch.equal(
        lse.float(), torch.full((batch, 4, q_len), -torch.inf if sinks is None else 1.0)
    )


@every_backend
@every_dtype
def test_a_row_under_the_lowest_number_is_an_average(backend, dtype):
    query, key, value = (torch.asarray(array).to(dtype) for array in make_inputs(6, 40))
    mask = torch.full((6, 40), torch.finfo(dtype).min, dtype=dtype)
    mask[3:] = 0
    output, _ = call(backend, query, key, value, mask=mask)
    average = value.double().mean(2).repeat_interleave(2, 1)[:, :, None].expand(-1, -1, 3, -1)
    # in half types the lowest number leaves room for scores beside it
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype)
    if tolerance is not None:
        torch.testing.assert_close(output[:, :, :3].double(), average, rtol=0, atol=tolerance)
    expected, _ = oracle(query, key, value, mask=mask)
    np.testing.assert_allclose(to_float64(output), expected, rtol=0.02, atol=0.02)


@every_backend
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("q_len", [1, 20], ids="q{}".format)
def test_masks_and_blind_rows_over_quantised_keys(backend, bits, dtype, q_len):
    query, *sides = make_inputs(q_len, 50)
    packed = [to_torch(quantize(side, bits, groups=1)) for side in sides]
    mask = torch.asarray(seeded().random((2, 1, q_len, 50)) < 0.6)
    mask[1, :, 0] = False
    query = torch.asarray(query).to(dtype)
    output, lse = call(backend, query, *packed, mask=mask)
    expected, expected_lse = oracle(query, *(side.dequantize() for side in packed), mask=mask)
    assert (output[1, :, 0] == 0).all()
    assert (lse[1, :, 0] == -torch.inf).all()
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    np.testing.assert_allclose(to_float64(output), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(to_float64(lse), expected_lse, rtol=1e-4, atol=1e-4)


@every_backend
@every_dtype
@pytest.mark.parametrize("paged", [False, True], ids=["packed", "paged"])
@pytest.mark.parametrize("sinks", [False, True], ids=["bare", "sinks"])
def test_sequences_with_more_queries_than_keys_start_with_zeros(backend, dtype, paged, sinks):
    lengths = [(3, 1), (4, 0), (20, 9), (2, 7)]
    arrays, edges = make_packed(lengths)
    options = {"cu_seqlens_q": edges[0], "cu_seqlens_k": edges[1]}
    if paged:
        pools = [make_pool(side, edges[1]) for side in arrays[1:]]
        arrays, options["block_tables"] = [arrays[0], *(p for p, _ in pools)], pools[0][1]
    arrays = [torch.asarray(array).to(dtype) for array in arrays]
    logits = torch.tensor([0.5, -1.5, 0.0, -torch.inf]) if sinks else torch.full((4,), -torch.inf)
    with skip_refusals():
        output, lse = attention_varlen(
            *arrays, **options, is_causal=True, sinks=logits if sinks else None, return_lse=True,
            backend=backend,
        )  # fmt: skip
    blind = torch.cat([torch.arange(q) < q - k for q, k in lengths])
    assert blind.sum() == 2 + 4 + 11
    assert (output[blind] == 0).all()
    assert torch.equal(lse[blind], logits.expand(17, 4).to(lse.dtype))
    assert output.isfinite().all()
    assert lse[~blind].isfinite().all()
    assert (output[~blind] != 0).any(-1).all()


@every_backend
@every_dtype
@pytest.mark.parametrize("q_len", [1, 3], ids="q{}".format)
def test_decoding_an_empty_sequence_gives_zeros(backend, dtype, q_len):
    pool = torch.full((4, 8, 2, 16), torch.nan)
    pool[2] = torch.asarray(seeded().standard_normal((8, 2, 16)))
    query = torch.asarray(seeded().standard_normal((3, q_len, 4, 16))).to(dtype)
    tables = torch.tensor([[-1, 9], [2, -1], [0, 0]], dtype=torch.int32)
    with skip_refusals():
        output, lse = attention_decode(
            query, pool.to(dtype), pool.to(dtype), block_tables=tables, return_lse=True,
            seq_lens=torch.tensor([0, 8, 0], dtype=torch.int32), backend=backend,
        )  # fmt: skip
    assert (output[[0, 2]] == 0).all()
    assert (lse[[0, 2]] == -torch.inf).all()
    assert output.isfinite().all()
    assert lse[1].isfinite().all()
