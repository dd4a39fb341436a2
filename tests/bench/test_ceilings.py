import json
import math

import numpy as np
import pytest

from tesseral import _native
from tesseral.bench import ceilings
from tesseral.bench.ceilings import PRODUCTS, Ceilings, make_reader_of, measure_ceilings
from tesseral.runtime.cpu import CacheSizes, supported_targets


def test_every_target_has_rates_that_are_finite():
    found = measure_ceilings(2, section_s=1e-4, buffer_bytes=2**22)
    assert tuple(found.products) == supported_targets()
    for rates in found.products.values():
        assert "fma_fp32" in rates
        assert set(rates) <= set(PRODUCTS)
        assert all(math.isfinite(rate) and rate > 1e6 for rate in rates.values())
    assert math.isfinite(found.read)
    assert found.read > 1e6
    assert Ceilings.from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize("target", supported_targets())
@pytest.mark.parametrize("size", [0, 1, 4095, 2**20, 2**22 + 77])
def test_reading_ends_where_the_array_does(target, size):
    assert _native.read_rate(np.ones(size, np.uint8), 2, target)[0] == size


def test_a_reader_takes_the_arrays_of_one_copy_after_the_other(monkeypatch):
    read = []
    monkeypatch.setattr(
        ceilings._native, "read_rate", lambda data, threads, _: read.append((data.nbytes, threads))
    )
    reader = make_reader_of([[np.ones((2, 3)), np.ones(5)], [np.ones(7, np.uint8)]], 3)
    for _ in range(3):
        reader()
    assert read == [(48, 3), (40, 3), (7, 3), (48, 3), (40, 3)]


def test_the_best_rate_is_that_of_any_target_and_any_of_the_kinds():
    found = Ceilings(
        threads=1,
        products={"new": {"fma_fp32": 3.0, "dot_bf16": 2.0}, "old": {"fma_fp32": 4.0}},
        read=1.0,
        buffer_bytes=8,
    )
    assert found.best("fma_fp32") == found.best("fma_fp32", "dot_bf16") == 4.0
    assert found.best("dot_bf16") == 2.0


def test_a_rate_is_the_best_of_several_long_enough(monkeypatch):
    asked = []

    def product_rate(kind, rounds, threads, target):
        asked.append(rounds)
        slowed = 2 if len(asked) % 2 else 1
        return 10.0 * rounds, slowed * rounds * 1e-5

    monkeypatch.setattr(ceilings._native, "product_rate", product_rate)
    assert ceilings._product_rate("fma_fp32", "scalar", 1, 0.1) == pytest.approx(1e6)
    assert asked[-1] * 2e-5 >= 0.1


@pytest.mark.parametrize(
    ("l3", "memory", "size"),
    [(2**28, 2**34, 2**30), (2**28, 2**30, 2**27), (0, None, 2**28)],
)
def test_what_is_read_is_far_larger_than_caches_where_memory_allows(monkeypatch, l3, memory, size):
    caches = CacheSizes(l1d=2**15, l2=2**20, l3=l3, source="default")
    monkeypatch.setattr(ceilings, "cache_sizes", lambda: caches)
    machine = type("Machine", (), {"memory_bytes": memory})
    monkeypatch.setattr(ceilings, "machine_record", machine)
    assert ceilings._beyond_caches() == size
