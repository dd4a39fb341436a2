"""Language models on a CUDA device: W4A4KV4 against transformers in float16, and by its parts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from tesseral.bench.graphs import interleave_events
from tesseral.bench.llm.cuda_names import FP16, FUSED, PLAIN, UNFUSED
from tesseral.bench.llm.cuda_sides import CudaSide, DenseSide, OurSide
from tesseral.bench.timing import Timing, ratio
from tesseral.llm.fused import FusedDecoder
from tesseral.runtime.machine import machine_record

SCHEMA = "tesseral.bench.llm.cuda/1"

EIGHT_B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
"""A Llama of 8 B parameters."""

Watch = Callable[[str], None]
"""Told what is measured next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaPlan:
    """What is measured.

    Attributes
    ----------
    layers : int
        Decoder blocks of the model.
    context : int
        Tokens of a prompt, and before the tokens that are generated.
    prompts : int
        Prompts that are read at once.
    batches : tuple of int
        Sequences that go on at once.
    repeats : int
        Samples of each side.
    """

    layers: int = 32
    context: int = 2048
    prompts: int = 8
    batches: tuple[int, ...] = (1, 64)
    repeats: int = 7
    shape: dict[str, Any] = field(default_factory=lambda: EIGHT_B)


FULL = CudaPlan()
QUICK = CudaPlan(layers=4, repeats=3)

FASTER = {"prefill": 1.35, "decode 1": 2.0, "decode 64": 1.5}
"""How many times as fast as float16 ours must be."""

SLOWER = 0.07
"""By how much transforms may slow the model down."""

MEMORY = {"prefill": 0.42, "decode 64": 0.35}
"""Share of float16's peak memory that ours may take."""


@torch.inference_mode()
def run(plan: CudaPlan, watch: Watch) -> dict[str, Any]:
    """Measure everything and return a record of plain values."""
    from tesseral.bench.llm.cuda_apart import ApartSite
    from tesseral.llm.random_cuda import dense_model, quantised_model

    shape = plan.shape | {"num_hidden_layers": plan.layers}
    makers: dict[str, Callable[[], CudaSide]] = {
        FUSED: lambda: OurSide(FusedDecoder(quantised_model(shape, "hadamard"))),
        UNFUSED: lambda: OurSide(FusedDecoder(quantised_model(shape, "hadamard"), ApartSite)),
        PLAIN: lambda: OurSide(FusedDecoder(quantised_model(shape, "none"))),
        FP16: lambda: DenseSide(dense_model(shape)),
    }
    sides: dict[str, CudaSide] = {}
    memory: dict[str, dict[str, int]] = {}
    for name, make in makers.items():
        watch(f"{name}: memory")
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        sides[name] = make()
        memory[name] = _memory(plan, sides[name], before)
    timings = {"prefill": _prefill(plan, sides, watch)}
    for batch in plan.batches:
        watch(f"decode {batch}")
        torch.cuda.empty_cache()
        replays = {n: side.decoder(batch, plan.context, 64) for n, side in sides.items()}
        timings[f"decode {batch}"] = interleave_events(replays, 3 * plan.repeats)
        del replays
    record = {
        "schema": SCHEMA,
        "machine": machine_record().as_dict(),
        "device": torch.cuda.get_device_name(),
        "plan": asdict(plan),
        "memory": memory,
        "timings": {
            what: {name: timing.as_dict() for name, timing in found.items()}
            for what, found in timings.items()
        },
    }
    return record | {"bars": bars(timings, memory)}


def _memory(plan: CudaPlan, side: CudaSide, before: int) -> dict[str, int]:
    """Return the peak of device memory that a side takes to read prompts, and to go on."""
    found = {}
    calls: dict[str, Callable[[], object]] = {"prefill": partial(side.prefill, _tokens(plan))}
    for batch in plan.batches:
        calls[f"decode {batch}"] = partial(side.decoder, batch, plan.context, 64)
    for what, call in calls.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        found[what] = torch.cuda.max_memory_allocated() - before
        del kept
    return found


def _prefill(plan: CudaPlan, sides: dict[str, CudaSide], watch: Watch) -> dict[str, Timing]:
    watch("prefill")
    torch.cuda.empty_cache()
    tokens = _tokens(plan)
    calls = {name: partial(side.prefill, tokens) for name, side in sides.items()}
    return interleave_events(calls, plan.repeats)


def _tokens(plan: CudaPlan) -> torch.Tensor:
    shape = plan.prompts, plan.context
    return torch.randint(1, plan.shape["vocab_size"], shape, device="cuda")


def bars(
    timings: dict[str, dict[str, Timing]], memory: dict[str, dict[str, int]]
) -> list[dict[str, Any]]:
    """Return what must hold, what was found, and whether it holds."""
    found = []
    for what, sides in timings.items():
        if what in FASTER:
            value = ratio(sides[FP16], sides[FUSED])
            found.append(_bar(f"{what}, times as fast as {FP16}", value, FASTER[what]))
        slower = ratio(sides[FUSED], sides[PLAIN]) - 1
        found.append(_bar(f"{what}, slower by transforms", slower, SLOWER, below=True))
    for what, share in MEMORY.items():
        if what in memory[FUSED]:
            value = memory[FUSED][what] / memory[FP16][what]
            found.append(_bar(f"{what}, share of memory", value, share, below=True))
    return found


def _bar(name: str, value: float, limit: float, *, below: bool = False) -> dict[str, Any]:
    holds = value <= limit if below else value >= limit
    return {"name": name, "value": value, "limit": limit, "below": below, "holds": holds}
