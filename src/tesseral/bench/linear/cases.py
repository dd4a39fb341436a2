"""Which layers are timed, against whom, and what must hold."""

from dataclasses import dataclass

READ = "read bandwidth"
INT8 = "torch int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layer that tokens pass, transform and quantisation of its input included.

    Attributes
    ----------
    tokens, in_features, out_features : int
        Sizes.
    dtype : str
        Type of input and output, and of the peer's weight.
    weight_bits, activation_bits : int
        Widths of ours.
    group_size : int, optional
        Weights that share a scale; a whole row by default.
    """

    tokens: int
    in_features: int = 4096
    out_features: int = 4096
    dtype: str = "bfloat16"
    weight_bits: int = 4
    activation_bits: int = 4
    group_size: int | None = None

    @property
    def name(self) -> str:
        """The case in words."""
        group = "" if self.group_size is None else f", groups of {self.group_size}"
        return (
            f"W{self.weight_bits}A{self.activation_bits} {self.in_features} x "
            f"{self.out_features}, {self.tokens} tokens, {self.dtype}{group}"
        )

    @property
    def operations(self) -> int:
        """Multiplications and additions of the layer itself."""
        return 2 * self.tokens * self.in_features * self.out_features

    @property
    def weight_bytes(self) -> int:
        """Bytes of ours: codes and scales."""
        groups = 1 if self.group_size is None else self.in_features // self.group_size
        return self.out_features * (self.in_features * self.weight_bits // 8 + 4 * groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What must hold of a case.

    Attributes
    ----------
    against : str
        The peer that must be this many times slower, or :data:`READ`, of which this share must
        be used.
    at_least : float
        The ratio, or the share.
    """

    against: str
    at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A case and what must hold of it."""

    case: Case
    bars: tuple[Bar, ...]


def _table() -> tuple[Contest, ...]:
    needed = {
        (2048, "bfloat16"): 1.5,
        (2048, "float32"): 3.3,
        (256, "bfloat16"): 1.3,
        (256, "float32"): 3.3,
        (1, "bfloat16"): 5.0,
        (1, "float32"): 9.0,
    }
    rows = []
    for (tokens, dtype), ratio in needed.items():
        bars = [Bar(against=f"torch {dtype}", at_least=ratio)]
        if tokens == 1:
            bars.append(Bar(against=READ, at_least=0.6))
        rows.append(Contest(case=Case(tokens=tokens, dtype=dtype), bars=tuple(bars)))
    for tokens in (2048, 256, 1):  # of which nothing is asked
        rows.append(Contest(case=Case(tokens=tokens, group_size=128), bars=()))
        rows.append(Contest(case=Case(tokens=tokens, activation_bits=8), bars=()))
        rows.append(Contest(case=Case(tokens=tokens, activation_bits=16), bars=()))
    return tuple(rows)


TABLE = _table()
"""The layers."""

INPUT = Contest(
    case=Case(tokens=256, out_features=0, dtype="bfloat16"),
    bars=(Bar(against="unfused", at_least=3.0),),
)
"""Transform and quantisation alone, against torch's operations one by one."""
