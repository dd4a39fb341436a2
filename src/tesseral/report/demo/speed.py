"""The parts of the report that time: attention and 4-bit layers beside torch's, on this machine."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter, sleep
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from tesseral.attention import TilingMask, attention
from tesseral.attention.tiling import Coverage
from tesseral.core.kronecker import balanced_factors
from tesseral.core.packing import pack
from tesseral.quantization.linear import QuantizedInput, QuantizedLinear
from tesseral.report import charts, page
from tesseral.report.units import seconds_text
from tesseral.runtime.cpu import cpu_features

OURS, TORCH = "ours", "peer"
NAMES = {OURS: "Tesseral", TORCH: "torch"}

HEADS, KV_HEADS, HEAD_DIM = 8, 8, 64
LENGTHS = (512, 1024, 2048, 4096)
CACHE = 16384
"""Keys that the query of one token reads."""

WIDTH = 2048
TOKENS = (1, 16, 256)

MASK_LENGTH, MASK_TILE, MASK_WINDOW = 8192, 256, 2048
_PAUSE_S = 0.02  # lets threads of the call before go to sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """One task, and how long each side takes for it.

    Attributes
    ----------
    name : str
        The task in words.
    seconds : dict of str to float
        Medians by side.
    """

    name: str
    seconds: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times as long torch takes."""
        return self.seconds[TORCH] / self.seconds[OURS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What was timed.

    Attributes
    ----------
    dtype : str
        Type of queries, keys and values, and of torch's layer.
    prefill, decode, layers : tuple of Race
        Causal attention of whole sequences; one query on a long cache; 4-bit layers.
    lengths : tuple of int
        Of the sequences in ``prefill``.
    """

    dtype: str
    prefill: tuple[Race, ...]
    decode: tuple[Race, ...]
    layers: tuple[Race, ...]
    lengths: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return asdict(self)


def measure_speeds(
    *,
    lengths: tuple[int, ...] = LENGTHS,
    cache: int = CACHE,
    width: int = WIDTH,
    repeats: int = 5,
) -> Speeds:
    """Time both sides in turns, with torch's own number of threads.

    In bfloat16 if the chip multiplies it; elsewhere torch is faster in float32.
    """
    dtype = torch.bfloat16 if "avx512_bf16" in cpu_features().usable else torch.float32
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    prefill = [
        _race(
            f"{length} tokens, causal",
            {
                OURS: _attention(*arrays, is_causal=True),
                TORCH: _sdpa(*arrays, is_causal=True),
            },
            repeats,
        )
        for length in lengths
        for arrays in [[normal(1, HEADS, length, HEAD_DIM) for _ in range(3)]]
    ]
    query = normal(1, 4 * KV_HEADS, 1, HEAD_DIM)
    key, value = (normal(1, KV_HEADS, cache, HEAD_DIM) for _ in range(2))
    decode = _race(
        f"1 token on {cache} keys, 4 query heads to a key head",
        {OURS: _attention(query, key, value), TORCH: _sdpa(query, key, value, enable_gqa=True)},
        repeats,
    )
    layer, weight = _layer(width, generator), normal(width, width)
    layers = [
        _race(
            f"{tokens} token{'s' if tokens > 1 else ''}",
            {OURS: _call(layer, x), TORCH: _call(linear, x, weight)},
            repeats,
        )
        for tokens in TOKENS
        for x in [normal(tokens, width)]
    ]
    return Speeds(
        dtype=str(dtype).removeprefix("torch."),
        prefill=tuple(prefill),
        decode=(decode,),
        layers=tuple(layers),
        lengths=lengths,
    )


def _attention(*arrays: Tensor, is_causal: bool = False) -> Callable[[], object]:
    return lambda: attention(*arrays, is_causal=is_causal)


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False, enable_gqa: bool = False
) -> Callable[[], object]:
    return lambda: scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, enable_gqa=enable_gqa
    )


def _call(function: Callable[..., Tensor], *given: Tensor) -> Callable[[], object]:
    return lambda: function(*given)


def _layer(width: int, generator: torch.Generator) -> QuantizedLinear:
    """Return a layer of random 4-bit codes with a transform before it, as FlatQuant stores it."""
    source = QuantizedInput(balanced_factors(width), bits=4)
    for factor in source.transform.buffers():
        factor.copy_(torch.linalg.qr(torch.randn(factor.shape, generator=generator))[0])
    layer = QuantizedLinear(width, width, source, bias=False, bits=4)
    codes = torch.randint(-8, 8, (width, width), generator=generator, dtype=torch.int8)
    layer.weight_codes.copy_(pack(codes, 4))
    layer.weight_scale.fill_(0.01)
    return layer


@torch.inference_mode()
def _race(name: str, sides: Mapping[str, Callable[[], object]], repeats: int) -> Race:
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for call in sides.values():
        call()
    for _ in range(repeats):
        for side, call in sides.items():
            sleep(_PAUSE_S)
            call()
            started = perf_counter()
            call()
            samples[side].append(perf_counter() - started)
    return Race(name=name, seconds={side: median(times) for side, times in samples.items()})


def layers_section(speeds: Speeds) -> str:
    """Return how fast a 4-bit layer is."""
    chart = charts.bars(
        "Times as fast as torch",
        [_bar(race, str(race.name)) for race in speeds.layers],
        xlabel=f"torch's {speeds.dtype} time over ours",
    )
    return page.section(
        "How fast a 4-bit layer is here",
        [
            page.paragraph(
                f"One linear layer of {WIDTH} x {WIDTH} with 4-bit weights: its input is "
                "transformed and rounded, and 4-bit codes are multiplied as they are stored. "
                f"Beside it torch's layer in {speeds.dtype}, on the same threads, in turns."
            ),
            page.figure(chart, "Above 1, ours is faster. Medians."),
            page.table("Median times.", *_times(speeds.layers)),
        ],
    )


def attention_section(speeds: Speeds) -> str:
    """Return how fast attention is, and what of a mask is computed."""
    races = speeds.prefill
    chart = charts.grouped_bars(
        "Causal attention, lower is better",
        [str(length) for length in speeds.lengths],
        {side: [race.seconds[side] * 1e3 for race in races] for side in (TORCH, OURS)},
        xlabel="tokens",
        ylabel="milliseconds",
    )
    mask = TilingMask(MASK_LENGTH, MASK_LENGTH, is_causal=True, window=(MASK_WINDOW, -1))
    count = mask.count(MASK_TILE, MASK_TILE)
    return page.section(
        "Exact attention, on this machine",
        [
            page.paragraph(
                "The same softmax of the same products, without ever forming the matrix of "
                f"weights. {HEADS} heads of {HEAD_DIM}, {speeds.dtype}, beside torch's "
                "scaled_dot_product_attention, in turns."
            ),
            page.key(NAMES),
            page.grid(
                [
                    page.figure(chart, "Medians of single calls."),
                    page.figure(
                        _mask_map(mask),
                        f"A causal mask of {MASK_LENGTH} tokens with a window of {MASK_WINDOW}, in "
                        f"blocks of {MASK_TILE}: {count.full} full (green) need no mask, "
                        f"{count.partial} partial (gold) read theirs from one small triangle, and "
                        f"{count.empty} empty ones are never computed.",
                    ),
                ]
            ),
            page.table("Median times.", *_times([*races, *speeds.decode])),
        ],
        anchor="attention",
    )


def _mask_map(mask: TilingMask) -> str:
    side = -(-mask.q_len // MASK_TILE)
    colour = {Coverage.FULL: "flatquant", Coverage.PARTIAL: "gold"}
    roles: list[list[str | None]] = [[None] * side for _ in range(side)]
    for block in mask.blocks(MASK_TILE, MASK_TILE):
        roles[block.q_start // MASK_TILE][block.k_start // MASK_TILE] = colour[block.coverage]
    return charts.tiles(
        "What of a mask is computed", roles, xlabel="keys", ylabel="queries", numbered=False
    )


def _bar(race: Race, label: str) -> charts.Bar:
    return charts.Bar(label=label, text=f"{race.ratio:.2f} x", value=race.ratio, role=OURS)


def _times(races: list[Race] | tuple[Race, ...]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            race.name,
            *(_milliseconds(race.seconds[side]) for side in (TORCH, OURS)),
            f"{race.ratio:.2f} x",
        ]
        for race in races
    ]
    return ["task", NAMES[TORCH], NAMES[OURS], "times as fast"], rows


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}\u00a0ms" if seconds < 1 else seconds_text(seconds)
