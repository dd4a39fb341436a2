"""A record of the attention benchmark with every kind of entry."""

from tesseral.bench.attention.cases import Case
from tesseral.bench.attention.record import (
    AblationRecord,
    AttentionRecord,
    BarRecord,
    MemoryRecord,
    RowRecord,
    ShapeRecord,
)
from tesseral.bench.ceilings import Ceilings
from tesseral.bench.timing import Method, Timing

OURS = Timing(samples_s=(1.0, 2.0, 3.0), calls=4)
THEIRS = Timing(samples_s=(4.0, 4.0, 4.0), calls=2)
SLOW = Timing(samples_s=(0.5, 1.0, 1.5), calls=1)

PREFILL = Case(q_len=64, kv_len=64, q_heads=2, kv_heads=2, dtype="bfloat16", causal=True)
DECODE = Case(q_len=1, kv_len=64, q_heads=4, kv_heads=2, dtype="float32", kv_bits=4)

RECORD = AttentionRecord(
    machine={"cpu": "A Chip", "target": "wide", "packages": {"torch": "9.9"}},
    code="0123",
    method=Method(repeats=3, section_s=0.01),
    ceilings=Ceilings(
        threads=2,
        products={"wide": {"fma_fp32": 2e9, "dot_bf16": 4e9}, "scalar": {"fma_fp32": 1e9}},
        read=3e9,
        buffer_bytes=2**30,
    ),
    rows=(
        RowRecord(
            case=PREFILL,
            backend="native",
            explanation="why, and in which tiles",
            ours=OURS,
            peers={"sdpa": THEIRS},
            ceiling=4e9,
            bars=(
                BarRecord(against="sdpa", at_least=1.9, limit=2.35, measured=2.0, at_ceiling=2.5),
                BarRecord(
                    against="read bandwidth", at_least=0.75, limit=1, measured=0.5, at_ceiling=0.7
                ),
            ),
            extra_bytes={"ours": 3_000_000, "sdpa": 5_000_000},
        ),
        RowRecord(
            case=DECODE,
            backend="native",
            explanation="",
            ours=OURS,
            peers={"our bf16": THEIRS},
            reading=SLOW,
            reading_bytes=2**20,
            ceiling=3e9,
            bars=(
                BarRecord(
                    against="our bf16", at_least=1.6, limit=None, measured=2.0, at_ceiling=4.0
                ),
            ),
            extra_bytes={},
        ),
    ),
    ablations=(AblationRecord(name="without it", case=PREFILL, ours=OURS, without=THEIRS),),
    memory=MemoryRecord(case=PREFILL, extra_bytes=2**20, at_most=2**26),
    shapes=(
        ShapeRecord(
            case=PREFILL, backend="native", peer="sdpa", ours=OURS, theirs=SLOW, again=True
        ),
        ShapeRecord(
            case=DECODE, backend="native", peer="folded", ours=OURS, theirs=THEIRS, again=False
        ),
    ),
)
