"""What is measured on a CUDA device, and what must hold, as ratios within one run."""

from dataclasses import dataclass, replace
from typing import Literal

from tesseral.bench.attention.cases import Bar, Case

COPY = "copy"
"""Copying as many bytes as the keys and values have, half of them read and half written."""

READ = "reading"
"""Reading the keys and values once: what no kernel can go below."""

OUR_FP16 = "our fp16"
FLASH, EFFICIENT, CUDNN, SDPA = "SDPA flash", "SDPA efficient", "SDPA cuDNN", "SDPA"
FLEX, UNFUSED = "FlexAttention", "unfused"

Cache = Literal["cold", "warm"]
"""Whether a call finds its keys in memory or, as far as they fit, in the L2 cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceContest:
    """A case, who runs it for us, and who is measured beside it.

    Attributes
    ----------
    case : Case
    backend : str
        Ours.
    peers : tuple of str
        Names of :data:`~.sides.SIDES`.
    bars : tuple of Bar
        What must hold.
    cache : {"cold", "warm"}
        Where a decoding call finds its keys.
    """

    case: Case
    backend: str = "triton"
    peers: tuple[str, ...]
    bars: tuple[Bar, ...]
    cache: Cache = "cold"

    @property
    def name(self) -> str:
        """The contest in words."""
        words = self.case.name
        if self.backend != "triton":
            words += f", by {self.backend}"
        return words + (", warm cache" if self.cache == "warm" else "")


def _bars(**at_least: float) -> tuple[Bar, ...]:
    names = {"flash": FLASH, "efficient": EFFICIENT, "cudnn": CUDNN, "flex": FLEX}
    names |= {"unfused": UNFUSED, "copy": COPY, "our_fp16": OUR_FP16}
    return tuple(Bar(against=names[name], at_least=least) for name, least in at_least.items())


def _square(length: int, *, causal: bool) -> Case:
    """Return the prefill of 16,384 tokens in all, or of one longer sequence."""
    return Case(
        batch=max(1, 16384 // length),
        q_len=length,
        kv_len=length,
        q_heads=16,
        kv_heads=16,
        dtype="float16",
        causal=causal,
    )


def _prefill(length: int, *, causal: bool) -> DeviceContest:
    bars, peers = {"efficient": 1.43}, [FLASH, EFFICIENT, CUDNN]
    if 4096 <= length <= 16384:
        bars |= {"cudnn": 0.75, "flex": 1.05}
        peers.append(FLEX)
    if length == 16384:
        bars["flash"] = 1.25
    if length == 8192 and not causal:
        bars["unfused"] = 5.0
        peers.append(UNFUSED)
    return DeviceContest(
        case=_square(length, causal=causal), peers=tuple(peers), bars=_bars(**bars)
    )


def _of_turing(length: int, *, causal: bool) -> DeviceContest:
    return DeviceContest(
        case=_square(length, causal=causal),
        backend="turing",
        peers=(EFFICIENT,),
        bars=_bars(efficient=1.2),
    )


_LONG = Case(q_len=1, kv_len=131072, q_heads=32, kv_heads=8, dtype="float16")
_SHORT = replace(_LONG, kv_len=8192)
_DECODERS = (SDPA, FLASH, CUDNN)

TABLE = (
    *(
        _prefill(length, causal=causal)
        for length in (1024, 2048, 4096, 8192, 16384, 32768)
        for causal in (False, True)
    ),
    DeviceContest(case=_LONG, peers=(*_DECODERS, READ, COPY), bars=_bars(copy=0.85)),
    # of the default, which is cuDNN there, the same factors are beyond what reading alone takes
    DeviceContest(case=_SHORT, peers=(*_DECODERS, READ), bars=_bars(flash=1.5)),
    DeviceContest(case=_SHORT, peers=(*_DECODERS, READ), bars=_bars(flash=2.0), cache="warm"),
    DeviceContest(case=replace(_LONG, kv_bits=8), peers=(OUR_FP16, COPY), bars=_bars(our_fp16=1.7)),
    DeviceContest(case=replace(_LONG, kv_bits=4), peers=(OUR_FP16, COPY), bars=_bars(our_fp16=2.8)),
    *(_of_turing(length, causal=causal) for length in (4096, 16384) for causal in (False, True)),
)
"""The cases and what must hold of them, on one H200."""
