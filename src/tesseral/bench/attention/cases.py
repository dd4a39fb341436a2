"""What is measured: the table with what must hold, the ablations, and the grid of shapes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Self

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

OURS = "ours"
READ = "read bandwidth"
_SCALE_BYTES = 2  # of a scale, and of an offset, one each for a row of codes


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of attention on random arrays.

    Attributes
    ----------
    batch, q_len, kv_len, q_heads, kv_heads, head_dim : int
        Sizes.
    dtype : {"float32", "bfloat16", "float16"}
        Type of the query, of the output, and of dense keys and values.
    causal : bool
        Whether keys after the diagonal are hidden.
    kv_bits : {4, 8} or None
        Width of the codes that keys and values are stored in, as ``QuantizedKVCache`` does.
    """

    batch: int = 1
    q_len: int
    kv_len: int
    q_heads: int
    kv_heads: int
    head_dim: int = 128
    dtype: str
    causal: bool = False
    kv_bits: int | None = None

    @property
    def decoding(self) -> bool:
        """Whether so few queries meet each key that reading the keys is what takes time."""
        return self.q_len <= 16

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products, over the visible keys."""
        pairs = self.q_len * self.kv_len
        if self.causal:
            pairs -= self.q_len * (self.q_len - 1) // 2
        return 4 * self.batch * self.q_heads * self.head_dim * pairs

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values, their scales and offsets included."""
        row = self.head_dim * ITEM_BYTES[self.dtype]
        if self.kv_bits is not None:
            row = self.head_dim * self.kv_bits // 8 + 2 * _SCALE_BYTES
        return 2 * self.batch * self.kv_heads * self.kv_len * row

    @property
    def name(self) -> str:
        """The case in words."""
        parts = [f"{'decode' if self.q_len == 1 else 'prefill'} {SHORT[self.dtype]}"]
        if self.kv_bits is not None:
            parts.append(f"int{self.kv_bits} KV")
        if self.batch > 1:
            parts.append(f"batch {self.batch}")
        shared = "" if self.q_heads == self.kv_heads else f"/{self.kv_heads}"
        parts.append(f"{self.q_heads}{shared} heads")
        if self.head_dim != 128:
            parts.append(f"dim {self.head_dim}")
        whole = self.q_len in (1, self.kv_len)
        parts.append(_length(self.kv_len) if whole else f"{self.q_len} x {_length(self.kv_len)}")
        if self.q_len > 1:
            parts.append("causal" if self.causal else "full")
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_dict`."""
        return cls(**record)


def _length(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens >= 2**14 and tokens % 1024 == 0 else str(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What must hold of a case.

    Attributes
    ----------
    against : str
        The peer that must be this many times slower; or ``"read bandwidth"``, of which this
        share must be used.
    at_least : float
        The ratio, or the share.
    limit : float, optional
        The ratio that the machine of the issue allowed at most.
    capped : float, optional
        Count the peer as no faster than this share of the read bandwidth.
    """

    against: str
    at_least: float
    limit: float | None = None
    capped: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A case of ours, and who is measured beside it.

    Attributes
    ----------
    case : Case
        Ours.
    peers : dict of str to Case
        Their names, and what each computes, which is the same but for how it is stored. The name
        of a library's way, or one that starts with ``"our"`` for ourselves on another case.
    bars : tuple of Bar
        What must hold.
    """

    case: Case
    peers: dict[str, Case]
    bars: tuple[Bar, ...]


def _prefill(dtype: str, length: int, causal: bool, at_least: float, limit: float) -> Contest:
    case = Case(q_len=length, kv_len=length, q_heads=8, kv_heads=8, dtype=dtype, causal=causal)
    return Contest(
        case=case, peers={"sdpa": case}, bars=(Bar(against="sdpa", at_least=at_least, limit=limit),)
    )


def _decode(dtype: str, bars: Mapping[str, tuple[float, float]]) -> Contest:
    case = Case(q_len=1, kv_len=32768, q_heads=32, kv_heads=8, dtype=dtype)
    ratios = [Bar(against=name, at_least=low, limit=limit) for name, (low, limit) in bars.items()]
    return Contest(
        case=case,
        peers=dict.fromkeys(bars, case),
        bars=(*ratios, Bar(against=READ, at_least=0.75, limit=1.0)),
    )


def _packed(
    bits: int, q_heads: int, at_least: float, limit: float | None, capped: float | None
) -> Contest:
    dense = Case(q_len=1, kv_len=32768, q_heads=q_heads, kv_heads=8, dtype="bfloat16")
    bar = Bar(against="our bf16", at_least=at_least, limit=limit, capped=capped)
    return Contest(case=replace(dense, kv_bits=bits), peers={"our bf16": dense}, bars=(bar,))


TABLE = (
    _prefill("bfloat16", 4096, False, 1.9, 2.35),
    _prefill("bfloat16", 1024, True, 2.8, 3.6),
    _prefill("bfloat16", 4096, True, 2.1, 2.7),
    _prefill("float32", 4096, False, 1.05, 1.3),
    _prefill("float32", 4096, True, 1.15, 1.3),
    _decode("bfloat16", {"enable_gqa": (40, 55), "folded": (4, 6)}),
    _decode("float32", {"enable_gqa": (11, 15), "folded": (3, 4.3)}),
    _packed(8, 8, 1.6, 2.0, None),
    _packed(4, 8, 2.6, 3.8, None),
    _packed(8, 32, 1.2, None, 0.75),
    _packed(4, 32, 1.4, None, 0.75),
)
"""The cases and what must hold of them, all as ratios within one run."""

LONG_PREFILL = Case(q_len=65536, kv_len=65536, q_heads=8, kv_heads=8, dtype="bfloat16", causal=True)
"""The case whose peak memory has a bar."""

LONG_PREFILL_BYTES = 64 * 2**20
"""What it may take at its peak beyond inputs and output."""

NEVER_SLOWER = 0.97
"""Ratio to a peer below which a shape of the grid counts as slower."""


def grid() -> Iterator[Case]:
    """Yield every shape on which we must not be slower than a peer."""
    axes = product(
        ("float32", "bfloat16", "float16"),
        (64, 80, 128, 256),
        ((8, 8), (32, 8)),
        ((1, 512), (1, 4096), (1, 32768), (8, 512), (8, 4096)),  # batch x kv at most 32K
        (1, 16, 512, 2048),
    )
    for dtype, head_dim, (q_heads, kv_heads), (batch, kv_len), q_len in axes:
        yield Case(
            batch=batch,
            q_len=q_len,
            kv_len=kv_len,
            q_heads=q_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
        )
