"""A table of tiny cases for the attention benchmark, and ceilings that are round numbers."""

from tesseral.bench.attention.cases import Bar, Case, Contest
from tesseral.bench.ceilings import Ceilings

CEILINGS = Ceilings(
    threads=1,
    products={"wide": {"fma_fp32": 2e9, "dot_bf16": 4e9}, "scalar": {"fma_fp32": 1e9}},
    read=1e9,
    buffer_bytes=2**20,
)
PREFILL = Case(
    q_len=24, kv_len=24, q_heads=2, kv_heads=2, head_dim=8, dtype="bfloat16", causal=True
)
DECODE = Case(q_len=1, kv_len=40, q_heads=4, kv_heads=2, head_dim=8, dtype="float32")
PACKED = Case(q_len=1, kv_len=40, q_heads=4, kv_heads=2, head_dim=8, dtype="float32", kv_bits=8)
TABLE = (
    Contest(
        case=PREFILL, peers={"sdpa": PREFILL}, bars=(Bar(against="sdpa", at_least=1e-9, limit=2),)
    ),
    Contest(
        case=DECODE,
        peers={"enable_gqa": DECODE, "folded": DECODE},
        bars=(
            Bar(against="folded", at_least=1e9),
            Bar(against="read bandwidth", at_least=1e-9, limit=1),
        ),
    ),
    Contest(
        case=PACKED,
        peers={"our bf16": DECODE},
        bars=(Bar(against="our bf16", at_least=1e-9, capped=0.75),),
    ),
)
