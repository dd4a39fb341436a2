"""Measures a context that does not fit, part by part."""

import gc
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from statistics import median
from time import perf_counter
from typing import Any

import torch

from tesseral.bench.offload.cases import COPIED, FASTER, OFFLOADING, OURS, PARTS, Plan
from tesseral.bench.offload.rates import host_rates
from tesseral.llm.cooperative import CooperativeCache, MemoryPlan, plan_memory
from tesseral.llm.cooperative.layers import DeviceLayer, HostLayer
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.timeline import Timeline
from tesseral.llm.cooperative.turns import caches_in_turns, take_turns
from tesseral.llm.random_cuda import dense_model, offloading_cache
from tesseral.runtime.machine import machine_record

SCHEMA = "tesseral.bench.offload/1"

Watch = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]

_UNTIMED = 8  # first steps: the split finds out what the link can carry


@torch.inference_mode()
def run(
    plan: Plan, watch: Watch, parts: Iterable[str] = PARTS, save: Save | None = None
) -> dict[str, Any]:
    """Measure the parts asked for and return a record of plain values.

    Parameters
    ----------
    plan : Plan
        Sizes.
    watch : callable
        Told what is measured next.
    parts : iterable of str
        Of :data:`~tesseral.bench.offload.cases.PARTS`.
    save : callable, optional
        Given the record after each part.
    """
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine_record().as_dict(),
        "plan": asdict(plan),
    }
    wanted = list(parts)
    models = _Models(plan)
    for name, measure in _PARTS.items():
        if name not in wanted:
            continue
        watch(name)
        try:
            record[name] = measure(plan, models, watch)
        except torch.cuda.OutOfMemoryError as error:
            record[name] = {"refused": str(error)[:300]}
        _free(plan)
        record["bars"] = bars(record)
        if save is not None:
            save(record)
    _cap(plan, None)
    return record


class _Models:
    """The models, made when they are first asked for; one at a time."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._name, self._model = plan, "", None

    def of(self, name: str, *, layers: int, context: int) -> Any:
        if self._name != name:
            self._model = None
            _free(self._plan)
            shape = self._plan.shape | {
                "num_hidden_layers": layers,
                "max_position_embeddings": context,
            }
            dtype = torch.float32 if self._plan.device == "cpu" else torch.bfloat16
            torch.manual_seed(0)
            self._model = dense_model(shape, dtype, "tesseral", self._plan.device)
            self._name = name
        return self._model

    def whole(self) -> Any:
        depth = self._plan.shape["num_hidden_layers"]
        return self.of("whole", layers=depth, context=self._plan.context)

    def cut(self) -> Any:
        return self.of("cut", layers=self._plan.layers, context=self._plan.million)


def _rates(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    del models, watch
    return host_rates(plan)


def _logits(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    """Compare logits of a prompt and of tokens after it with those without offloading.

    Errors are distances to the logits of the same model in a longer type, with keys and values
    of that type.
    """
    _cap(plan, None)
    model = models.cut()
    length = plan.check + 4
    tokens = _tokens(plan, length)
    exact = deepcopy(model).to(torch.float64 if plan.device == "cpu" else torch.float32)
    oracle = _continued(exact, _everything_near(plan, exact, length), tokens)
    del exact
    _free(plan)
    sides = {}
    for bits in (16, 8, 4):
        watch(f"logits: {bits} bits")
        base = _continued(model, _everything_near(plan, model, length, bits), tokens)
        for way in (OURS, COPIED):
            memory = _half(plan, model, length, bits)
            cache = _cache(plan, model, memory, cooperate=way == OURS, passing=64)
            # chunks of other sizes, and strips that end inside of them
            got = _continued(model, cache, tokens, chunk=plan.check // 5)
            sides[f"{way}, {bits} bits"] = {
                "host_layers": len(memory.host_layers),
                "error": _distance(got, oracle),
                "error_without": _distance(base, oracle),
                "difference": _distance(got, base),
                "same_likeliest": float((got.argmax(-1) == base.argmax(-1)).float().mean()),
            }
            del cache
    return {"sides": sides}


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _continued(
    model: Any, cache: Any, tokens: torch.Tensor, chunk: int | None = None
) -> torch.Tensor:
    """Return the logits of the last tokens, the first of them the prompt's last."""
    prompt = tokens[:, :-4]
    found = [_read(model, cache, prompt, chunk or prompt.shape[1])]
    found += [_read(model, cache, token, 1) for token in tokens[:, -4:].split(1, dim=1)]
    return torch.cat(found, dim=1).double()


def _decode(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    """Measure steps at the end of a context whose keys and values are random."""
    model = models.whole()
    memory = _planned(plan, model, plan.context, plan.gpu_bytes)
    _cap(plan, plan.gpu_bytes)
    _reset_peak(plan)
    watch("decode: ours")
    cache = _cache(plan, model, memory)
    fill(cache, plan.context - 3 * plan.steps - 2)
    token = _tokens(plan, 1)
    sides: dict[str, Any] = {}
    sides[OURS] = _stepped(plan, model, cache, token, plan.steps)
    sides[OURS] |= {"passing_tokens": cache.passing, **_peak(plan)}
    with cache.recorded() as timeline:
        model(token, past_key_values=cache)
    sides[OURS]["timeline"] = as_spans(timeline)
    watch("decode: copied")
    cache.cooperates = False
    sides[COPIED] = _stepped(plan, model, cache, token, plan.steps // 2 + _UNTIMED // 2)
    with cache.recorded() as timeline:
        model(token, past_key_values=cache)
    sides[COPIED]["timeline"] = as_spans(timeline)
    del cache
    _free(plan)
    return {"memory": asdict(memory), "sides": sides}


def _turns(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    """Decode two sequences of half the context together, and in turns."""
    model, context = models.whole(), plan.context // 2
    memory = _planned(plan, model, context, plan.gpu_bytes, batch=2)
    _cap(plan, plan.gpu_bytes)
    length = context - 2 * plan.steps - 2
    token = _tokens(plan, 2).view(2, 1)
    watch("turns: together")
    cache = _cache(plan, model, memory)
    fill(cache, length)
    together = _stepped(plan, model, cache, token, plan.steps)
    del cache
    _free(plan)
    watch("turns: in turns")
    link = _near_link(plan, model)
    samples = []
    with caches_in_turns(model, memory, 2, link) as caches:
        for cache in caches:
            fill(cache, length)
        for _ in range(4):
            _wait(plan)
            began = perf_counter()
            take_turns(model, list(token.split(1)), caches, plan.steps // 4 + 1)
            _wait(plan)
            samples.append((perf_counter() - began) / (plan.steps // 4))
    step = median(samples[1:])
    in_turns = {"samples_s": samples, "median_s": step, "tokens_per_s": 2 / step}
    together["tokens_per_s"] *= 2
    return {"memory": asdict(memory), "sides": {"together": together, "in turns": in_turns}}


def _peer(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    """Measure transformers' own cache on the same model, under torch's attention."""
    del watch
    if plan.device != "cuda":
        return {"refused": "it needs a CUDA device"}
    model = models.whole()
    _cap(plan, plan.gpu_bytes)
    _reset_peak(plan)
    model.set_attn_implementation("sdpa")
    theirs = None
    try:
        steps = max(4, plan.steps // 4)
        theirs = offloading_cache(model, plan.context - steps - 1)
        token = _tokens(plan, 1)
        return _stepped(plan, model, theirs, token, steps, untimed=2) | _peak(plan)
    except torch.cuda.OutOfMemoryError as error:
        return {"refused": str(error)[:300]}
    finally:
        model.set_attn_implementation("tesseral")
        del theirs
        _free(plan)


def _stepped(
    plan: Plan, model: Any, cache: Any, token: torch.Tensor, steps: int, untimed: int = _UNTIMED
) -> dict[str, Any]:
    samples = []
    for _ in range(steps):
        _wait(plan)
        began = perf_counter()
        logits = model(token, past_key_values=cache).logits
        token = logits[:, -1:].argmax(-1)
        _wait(plan)
        samples.append(perf_counter() - began)
    timed = samples[min(untimed, len(samples) - 1) :]
    return {"samples_s": samples, "median_s": median(timed), "tokens_per_s": 1 / median(timed)}


def _prefill(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    """Read a prompt of the whole context within the budget."""
    model = models.whole()
    return _prompted(plan, model, plan.context, plan.gpu_bytes, 16, 4, watch, "prefill")


def _million(plan: Plan, models: _Models, watch: Watch) -> dict[str, Any]:
    """Read a longer prompt with keys and values of 4 bits, on a cut of the model."""
    model = models.cut()
    return _prompted(
        plan, model, plan.million, plan.million_bytes, 4, plan.new_tokens, watch, "million"
    )


def _prompted(
    plan: Plan, model: Any, context: int, gpu_bytes: int, bits: int, new: int, watch: Watch,
    name: str,
) -> dict[str, Any]:  # fmt: skip
    memory = _planned(plan, model, context, gpu_bytes, bits)
    _cap(plan, gpu_bytes)
    _reset_peak(plan)
    began = perf_counter()
    cache = _cache(plan, model, memory)
    _wait(plan)
    allocated_s = perf_counter() - began
    tokens = _tokens(plan, context - new)
    spans: list[dict[str, Any]] = []
    chunks: list[float] = []
    began = perf_counter()
    pieces = tokens.split(memory.chunk, dim=1)
    logits = None
    for index, piece in enumerate(pieces):
        watch(f"{name}: chunk {index + 1} of {len(pieces)}")
        start = perf_counter()
        if index == len(pieces) // 2:
            with cache.recorded() as timeline:
                logits = model(piece, past_key_values=cache, logits_to_keep=1).logits
            spans = as_spans(timeline)
        else:
            logits = model(piece, past_key_values=cache, logits_to_keep=1).logits
            _wait(plan)
        chunks.append(perf_counter() - start)
    prefill_s = perf_counter() - began
    assert logits is not None
    decoded = _stepped(plan, model, cache, logits[:, -1:].argmax(-1), new, untimed=new // 4)
    finite = bool(torch.isfinite(logits).all())
    return {
        "memory": asdict(memory),
        "allocated_s": allocated_s,
        "prefill_s": prefill_s,
        "chunks_s": chunks,
        "tokens_per_s": tokens.shape[1] / prefill_s,
        "decode": decoded,
        "finite": finite,
        "host_bytes": cache.host_bytes,
        "timeline": spans,
        **_peak(plan),
    }


_PARTS = {
    "rates": _rates,
    "logits": _logits,
    "decode": _decode,
    "turns": _turns,
    "peer": _peer,
    "prefill": _prefill,
    "million": _million,
}


def bars(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must hold, what was found, and whether it holds."""
    found = []
    sides = dict(record.get("decode", {}).get("sides", {}))
    if sides:
        sides[OFFLOADING] = record.get("peer", {})
    for name, least in FASTER.items():
        if "median_s" in sides.get(name, {}):
            value = sides[name]["median_s"] / sides[OURS]["median_s"]
            found.append(_bar(f"decode, times as fast as {name}", value, least))
    for name in ("prefill", "million"):
        if name in record:
            completes = float("prefill_s" in record[name])
            found.append(_bar(f"{name}, completes", completes, 1))
    for name in ("decode", "prefill", "million"):
        part = record.get(name, {})
        peak = sides.get(OURS, {}) if name == "decode" else part
        if peak.get("reserved_bytes"):
            share = peak["reserved_bytes"] / part["memory"]["gpu_bytes"]
            found.append(_bar(f"{name}, share of the budget reserved", share, 1.0, below=True))
    if "memory" in record.get("million", {}):
        far = len(record["million"]["memory"]["host_layers"])
        found.append(_bar("million, layers on the host", far, 2))
    for name, side in record.get("logits", {}).get("sides", {}).items():
        value = side["error"] / side["error_without"]
        found.append(_bar(f"logits, {name}, times the error without", value, 2.0, below=True))
    return found


def _bar(name: str, value: float, limit: float, *, below: bool = False) -> dict[str, Any]:
    holds = value <= limit if below else value >= limit
    return {"name": name, "value": value, "limit": limit, "below": below, "holds": holds}


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


def _planned(
    plan: Plan, model: Any, context: int, gpu_bytes: int, bits: int = 16, batch: int = 1
) -> MemoryPlan:
    if not gpu_bytes:
        return _half(plan, model, context, bits, batch)
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


def _half(plan: Plan, model: Any, context: int, bits: int = 16, batch: int = 1) -> MemoryPlan:
    """Return a plan that leaves half of the layers on the host."""
    whole = plan_memory(
        model, context, 1 << 50, plan.host_bytes, batch=batch, kv_bits=bits, chunk=plan.chunk
    )
    layers = tuple(range(whole.n_layers))[1::2]
    needed = whole.gpu_needed - len(layers) * whole.layer_bytes
    return replace(whole, host_layers=layers, strip_tokens=context // 7, gpu_bytes=needed)


def _everything_near(plan: Plan, model: Any, context: int, bits: int = 16) -> CooperativeCache:
    memory = plan_memory(model, context, 1 << 50, plan.host_bytes, kv_bits=bits, chunk=plan.chunk)
    return _cache(plan, model, memory)


def _cache(plan: Plan, model: Any, memory: MemoryPlan, **options: Any) -> CooperativeCache:
    return CooperativeCache(model, memory, link=_near_link(plan, model), **options)


def _near_link(plan: Plan, model: Any) -> Link | None:
    """Return a link that copies where there is no device, to try the benchmark itself."""
    return Link(torch.device(model.device), remote=True) if plan.device == "cpu" else None


def _read(model: Any, cache: Any, tokens: torch.Tensor, chunk: int) -> torch.Tensor:
    """Return the logits of the last token, of a prompt that is read in chunks."""
    logits = tokens
    for piece in tokens.split(chunk, dim=1):
        logits = model(piece, past_key_values=cache, logits_to_keep=1).logits
    return logits


def _tokens(plan: Plan, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(1, plan.shape["vocab_size"], (1, length), generator=generator)
    return tokens.to(plan.device)


def _cap(plan: Plan, n_bytes: int | None) -> None:
    """Hold torch's allocator to so much; ``None`` to all there is."""
    if plan.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        _free(plan)
        torch.cuda.set_per_process_memory_fraction(1.0 if n_bytes is None else n_bytes / total)


def _reset_peak(plan: Plan) -> None:
    if plan.device == "cuda":
        _free(plan)
        torch.cuda.reset_peak_memory_stats()


def _peak(plan: Plan) -> dict[str, int]:
    if plan.device != "cuda":
        return {}
    return {
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "allocated_bytes": torch.cuda.max_memory_allocated(),
    }


def _wait(plan: Plan) -> None:
    if plan.device == "cuda":
        torch.cuda.synchronize()


def _free(plan: Plan) -> None:
    gc.collect()
    if plan.device == "cuda":
        torch.cuda.empty_cache()
