"""The oracle against the formulas of the room's README, one number at a time."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from attention.cases import make_inputs, oracle, run
from tesseral.attention.backends.reference import ReferenceBackend
from tesseral.attention.problem import AttentionProblem


def by_hand(query, key, value, *, scale=None, is_causal=False, window=None, softcap=None, **arrays):
    """Return output and lse by four nested loops over scalars."""
    batch, q_heads, q_len, head_dim = query.shape
    kv_heads, kv_len = key.shape[1:3]
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    left, right = window or (-1, -1)
    output, lse = np.zeros((batch, q_heads, q_len, value.shape[3])), np.zeros(query.shape[:3])
    mask, sinks, slopes = (arrays.get(name) for name in ("mask", "sinks", "alibi_slopes"))
    if mask is not None:
        mask = np.broadcast_to(mask, (batch, q_heads, q_len, kv_len))
    for b, h, i in itertools.product(range(batch), range(q_heads), range(q_len)):
        g = h // (q_heads // kv_heads)
        place, terms, total = i + kv_len - q_len, [], 0.0
        for j in range(kv_len):
            hidden = is_causal and j > place
            hidden |= left >= 0 and j < place - left
            hidden |= right >= 0 and j > place + right
            hidden |= mask is not None and mask.dtype == bool and not mask[b, h, i, j]
            if hidden:
                continue
            score = scale * sum(x * y for x, y in zip(query[b, h, i], key[b, g, j], strict=True))
            if softcap is not None:
                score = softcap * math.tanh(score / softcap)
            if slopes is not None:
                score -= slopes[h if slopes.ndim == 1 else (b, h)] * abs(place - j)
            if mask is not None and mask.dtype != bool:
                score += mask[b, h, i, j]
            terms.append((math.exp(score), j))
            total += terms[-1][0]
        if sinks is not None:
            total += math.exp(sinks[h])
        lse[b, h, i] = math.log(total) if total else -math.inf
        for weight, j in terms:
            output[b, h, i] += weight / total * value[b, g, j]
    return output, lse


RNG = np.random.default_rng(5)
OPTIONS = {
    "plain": {},
    "scale": {"scale": -0.7},
    "causal": {"is_causal": True},
    "window": {"window": (2, 1)},
    "left_window": {"window": (2, -1)},
    "causal_window": {"is_causal": True, "window": (3, 4)},
    "softcap": {"softcap": 0.8},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, -0.125, 1.0])},
    "alibi_per_batch": {"alibi_slopes": RNG.random((2, 4))},
    "sinks": {"sinks": np.array([0.3, -2.0, 5.0, -np.inf])},
    "boolean": {"mask": RNG.random((5, 7)) < 0.5},
    "additive": {"mask": RNG.standard_normal((2, 1, 5, 7))},
    "all": {
        "is_causal": True,
        "window": (4, -1),
        "softcap": 2.0,
        "alibi_slopes": np.full(4, 0.1),
        "sinks": np.zeros(4),
        "mask": np.where(RNG.random((1, 4, 1, 7)) < 0.7, 0.5, -np.inf),
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize(("q_len", "kv_len"), [(5, 7), (7, 5)], ids=["shorter", "longer"])
def test_the_reference_is_the_definition(options, q_len, kv_len):
    if q_len > kv_len and "mask" in options:
        options = {**options, "mask": np.swapaxes(options["mask"], -1, -2)}
    inputs = make_inputs(q_len, kv_len, head_dim=3, value_dim=2)
    for got, expected in zip(oracle(*inputs, **options), by_hand(*inputs, **options), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_reference_agrees_with_torch_where_both_mean_the_same(is_causal):
    query, key, value = map(torch.asarray, make_inputs(9, 9))
    got, _ = run(ReferenceBackend(), query, key, value, is_causal=is_causal)
    expected = scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=True)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_a_device_without_float64_is_refused_with_the_reason():
    problem = AttentionProblem(
        batch=1, q_len=1, kv_len=1, q_heads=1, kv_heads=1, head_dim=1, value_dim=1,
        dtype="float32", device="mps:0", scale=1.0,
    )  # fmt: skip
    verdict = ReferenceBackend().supports(problem)
    assert not verdict.ok
    assert verdict.reason == "needs float64, which mps:0 has not"
