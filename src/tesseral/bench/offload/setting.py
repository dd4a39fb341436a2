"""Plans, caches and prompts of what is measured, and the device's memory around them."""

import gc
from dataclasses import asdict, replace
from typing import Any

import torch

from tesseral.bench.offload.cases import Plan
from tesseral.llm.cache_argument import CACHE
from tesseral.llm.cooperative import CooperativeCache, MemoryPlan, plan_memory
from tesseral.llm.cooperative.host_layer import HostLayer
from tesseral.llm.cooperative.layers import DeviceLayer
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.timeline import Timeline


def fill(cache: CooperativeCache, length: int) -> None:
    """Let a cache hold ``length`` tokens of random keys and values."""
    drawn: dict[Any, torch.Tensor] = {}
    for layer in cache.layers:
        if not isinstance(layer, DeviceLayer | HostLayer):
            continue
        for array in layer.room.flat:
            place = array.narrow(2, 0, length)
            shape = *place.shape[:2], min(length, 16_384), place.shape[3]
            key = shape, array.dtype
            if key not in drawn:
                drawn[key] = torch.randn(shape, device=layer.link.device).to(array.dtype)
            for piece in place.split(shape[2], dim=2):
                piece.copy_(drawn[key][:, :, : piece.shape[2]])
        layer.assume(length)


def as_spans(timeline: Timeline) -> list[dict[str, Any]]:
    """Return what was recorded as plain values."""
    works = sorted(timeline.works(), key=lambda work: work.start_s)
    return [asdict(work) for work in works]


def plan_of(
    plan: Plan, model: Any, context: int, gpu_bytes: int, bits: int = 16, batch: int = 1
) -> MemoryPlan:
    """Return where keys and values lie in so much memory; half of them far where none is said."""
    if not gpu_bytes:
        return half_far(plan, model, context, bits, batch)
    found = plan_memory(
        model,
        context,
        gpu_bytes,
        plan.host_bytes,
        batch=batch,
        kv_bits=bits,
        chunk=_chunk(plan, gpu_bytes),
    )
    return found.require()


def _chunk(plan: Plan, gpu_bytes: int) -> int:
    """Return the tokens of a chunk: fewer where memory is short."""
    return plan.chunk if gpu_bytes > 16 * 10**9 else plan.chunk // 2


def half_far(plan: Plan, model: Any, context: int, bits: int = 16, batch: int = 1) -> MemoryPlan:
    """Return a plan that leaves half of the layers on the host."""
    whole = plan_memory(
        model, context, 1 << 50, plan.host_bytes, batch=batch, kv_bits=bits, chunk=plan.chunk
    )
    layers = tuple(range(whole.n_layers))[1::2]
    needed = whole.gpu_needed - len(layers) * whole.layer_bytes
    return replace(whole, host_layers=layers, strip_tokens=context // 7, gpu_bytes=needed)


def everything_near(plan: Plan, model: Any, context: int, bits: int = 16) -> CooperativeCache:
    """Return a cache all on the device."""
    memory = plan_memory(model, context, 1 << 50, plan.host_bytes, kv_bits=bits, chunk=plan.chunk)
    return cache_of(plan, model, memory)


def cache_of(plan: Plan, model: Any, memory: MemoryPlan, **options: Any) -> CooperativeCache:
    """Return a cache by a plan."""
    return CooperativeCache(model, memory, link=near_link(plan, model), **options)


def near_link(plan: Plan, model: Any) -> Link | None:
    """Return a link that copies where there is no device, to try the benchmark itself."""
    return Link(torch.device(model.device), remote=True) if plan.device == "cpu" else None


def read_prompt(model: Any, cache: Any, tokens: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return the logits of the last token, of a prompt that is read in chunks."""
    logits = tokens
    for piece in tokens.split(chunk, dim=1):
        logits = model(piece, **{CACHE: cache}, logits_to_keep=1).logits
    return logits


def tokens_of(plan: Plan, length: int) -> torch.Tensor:
    """Return random tokens, the same for the same length."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(1, plan.shape["vocab_size"], (1, length), generator=generator)
    return tokens.to(plan.device)


def hold_to(plan: Plan, n_bytes: int | None) -> None:
    """Hold torch's allocator to so much; ``None`` to all there is."""
    if plan.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        give_back(plan)
        torch.cuda.set_per_process_memory_fraction(1.0 if n_bytes is None else n_bytes / total)


def reset_peak(plan: Plan) -> None:
    """Begin to watch the device's memory."""
    if plan.device == "cuda":
        give_back(plan)
        torch.cuda.reset_peak_memory_stats()


def peak_of(plan: Plan) -> dict[str, int]:
    """Return the most that torch reserved, and what of that was in use."""
    if plan.device != "cuda":
        return {}
    return {
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "allocated_bytes": torch.cuda.max_memory_allocated(),
    }


def wait(plan: Plan) -> None:
    """Wait for the device."""
    if plan.device == "cuda":
        torch.cuda.synchronize()


def give_back(plan: Plan) -> None:
    """Give back memory that nobody uses."""
    gc.collect()
    if plan.device == "cuda":
        torch.cuda.empty_cache()
