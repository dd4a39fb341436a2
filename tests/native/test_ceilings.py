"""What the native code says an instruction set can do at most: rates that are rates."""

import numpy as np
import pytest

from tesseral import _native
from tesseral.runtime.cpu import cpu_features, supported_targets

TARGETS = supported_targets()
KINDS = ("fma_fp32", "dot_bf16", "dot_int8")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_products_are_counted_for_every_round_of_every_thread(target, threads):
    for kind in KINDS:
        once, _ = _native.product_rate(kind, 1000, threads, target)
        twice, seconds = _native.product_rate(kind, 2000, threads, target)
        assert twice == 2 * once
        assert once % (1000 * threads) == 0
        assert (seconds > 0) == (once > 0)
        assert seconds < 10


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_float_products(target):
    assert _native.product_rate("fma_fp32", 1, 1, target)[0] > 0


@pytest.mark.parametrize(
    ("kind", "needs"), [("dot_bf16", "avx512_bf16"), ("dot_int8", "avx512_vnni")]
)
def test_an_instruction_that_a_target_has_not_is_absent_and_not_slow(kind, needs):
    with_it = {name for name, wants in _native.cpu_targets() if needs in wants}
    for target in TARGETS:
        operations, _ = _native.product_rate(kind, 10, 1, target)
        assert (operations > 0) == (target in with_it)
    if needs not in cpu_features().usable:
        assert with_it.isdisjoint(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [0, 1, 1000, 2**24 + 3])
def test_reading_counts_the_bytes_it_was_given(target, size):
    data = np.ones(size, np.uint8)
    data.flags.writeable = False
    bytes_read, seconds = _native.read_rate(data, 2, target)
    assert bytes_read == size
    assert 0 <= seconds < 10


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="there are no products fma_fp8"):
        _native.product_rate("fma_fp8", 1, 1, "scalar")
    with pytest.raises(ValueError, match="no target sse9"):
        _native.product_rate("fma_fp32", 1, 1, "sse9")
    with pytest.raises(ValueError, match="threads are out of range"):
        _native.read_rate(np.ones(8, np.uint8), 0, "scalar")
    with pytest.raises(TypeError, match="incompatible function"):
        _native.read_rate(np.ones(8, np.float32), 1, "scalar")
