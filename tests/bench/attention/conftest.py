"""A benchmark of tiny shapes: what it says is checked, not how fast anything is."""

from types import SimpleNamespace

import pytest
import torch

from support.bench_cases import CEILINGS, DECODE, PREFILL, TABLE
from tesseral.bench.attention import ablation, cases, inputs, others, run
from tesseral.bench.timing import Method

# products of tiny matrices: more threads would only wait for one another
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def small_caches(monkeypatch):
    """Let keys and values of some kilobytes be more than the caches hold."""
    monkeypatch.setattr(inputs, "_LEAST_ROTATION", 4000)
    monkeypatch.setattr(inputs, "cache_sizes", lambda: SimpleNamespace(l3=100))


@pytest.fixture
def tiny(monkeypatch):
    """Replace table, ablations, grid and long prefill by tiny ones, and ceilings by fixed ones."""
    monkeypatch.setattr(run, "TABLE", TABLE)
    monkeypatch.setattr(others, "OTHERS", {})
    by_length = {True: DECODE, False: PREFILL}
    shrunk = tuple(
        ablation.Ablation(name=a.name, case=by_length[a.case.decoding], prepare=a.prepare)
        for a in ablation.ABLATIONS
    )
    monkeypatch.setattr(run, "ABLATIONS", shrunk)
    monkeypatch.setattr(run, "LONG_PREFILL", PREFILL)
    monkeypatch.setattr(run, "measure_ceilings", lambda _: CEILINGS)
    quick = Method(repeats=2, section_s=0.0)
    monkeypatch.setattr(run, "QUICK", quick)
    monkeypatch.setattr(run, "FULL", quick)
    monkeypatch.setattr(cases, "grid", lambda: iter((PREFILL, DECODE)))
    monkeypatch.setattr(run, "measure_memory", lambda calls, **_: [5] * len(calls))
