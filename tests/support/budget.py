"""How far a kernel may be from the truth."""

import numpy as np


def assert_within_budget(got, oracle, peer, *, factor=2.0, floor=0.0):
    """A kernel may be at most ``factor`` times as wrong as plain code of equal precision."""
    assert got.shape == oracle.shape
    assert np.isfinite(got).all(), "kernel produced a non-finite value"
    error = np.abs(got - oracle).max()
    allowed = factor * np.abs(peer - oracle).max() + floor
    assert error <= allowed, f"error {error:.3e} exceeds the budget {allowed:.3e}"
