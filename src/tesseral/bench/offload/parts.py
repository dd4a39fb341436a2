"""What is measured of a context that does not fit, part by part."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from statistics import median
from time import perf_counter
from typing import Any

import torch

from tesseral.bench.offload.cases import COPIED, OURS, Plan
from tesseral.bench.offload.rates import host_rates
from tesseral.bench.offload.setting import (
    as_spans,
    cache_of,
    everything_near,
    fill,
    give_back,
    half_far,
    hold_to,
    near_link,
    peak_of,
    plan_of,
    read_prompt,
    reset_peak,
    tokens_of,
    wait,
)
from tesseral.llm.cache_argument import CACHE
from tesseral.llm.cooperative.turns import caches_in_turns, take_turns
from tesseral.llm.random_cuda import dense_model, offloading_cache

Watch = Callable[[str], None]

_UNTIMED = 8  # first steps: the split finds out what the link can carry
_TURNS = 4


class Models:
    """The models, made when they are first asked for; one at a time."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._name, self._model = plan, "", None

    def of(self, name: str, *, layers: int, context: int) -> Any:
        """Return the model of a name, of so many layers, for so many tokens."""
        if self._name != name:
            self._model = None
            give_back(self._plan)
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
        """Return the model that decodes and reads a prompt."""
        depth = self._plan.shape["num_hidden_layers"]
        return self.of("whole", layers=depth, context=self._plan.context)

    def cut(self) -> Any:
        """Return a few of its layers, for the longest context."""
        return self.of("cut", layers=self._plan.layers, context=self._plan.million)


def rates(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Measure how fast the host's memory is read."""
    del models, watch
    return host_rates(plan)


def logits(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Compare logits of a prompt and of tokens after it with those without offloading.

    Errors are distances to the logits of the same model in a longer type, with keys and values
    of that type.
    """
    hold_to(plan, None)
    model = models.cut()
    length = plan.check + 4
    tokens = tokens_of(plan, length)
    exact = deepcopy(model).to(torch.float64 if plan.device == "cpu" else torch.float32)
    oracle = _continued(exact, everything_near(plan, exact, length), tokens)
    del exact
    give_back(plan)
    sides = {}
    for bits in (16, 8, 4):
        watch(f"logits: {bits} bits")
        base = _continued(model, everything_near(plan, model, length, bits), tokens)
        for way in (OURS, COPIED):
            memory = half_far(plan, model, length, bits)
            cache = cache_of(plan, model, memory, cooperate=way == OURS, passing=64)
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
    found = [read_prompt(model, cache, prompt, chunk or prompt.shape[1])]
    found += [read_prompt(model, cache, token, 1) for token in tokens[:, -4:].split(1, dim=1)]
    return torch.cat(found, dim=1).double()


def decode(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Measure steps at the end of a context whose keys and values are random; sides in turns."""
    model = models.whole()
    memory = plan_of(plan, model, plan.context, plan.gpu_bytes)
    hold_to(plan, plan.gpu_bytes)
    reset_peak(plan)
    watch("decode: ours")
    cache = cache_of(plan, model, memory)
    fill(cache, plan.context - 3 * plan.steps - 2)
    token = tokens_of(plan, 1)
    _steps(plan, model, cache, token, _UNTIMED)
    found: dict[str, Any] = {"passing_tokens": cache.passing, **peak_of(plan)}
    samples: dict[str, list[float]] = {OURS: [], COPIED: []}
    spans = {}
    for turn in range(_TURNS):
        for side in (OURS, COPIED) if turn % 2 == 0 else (COPIED, OURS):
            watch(f"decode: {side}, {turn + 1} of {_TURNS}")
            cache.cooperates = side == OURS
            # the first one waits for what the other side did not send ahead
            samples[side] += _steps(plan, model, cache, token, plan.steps // 6 + 1)[1:]
            if turn == _TURNS - 1:
                with cache.recorded() as timeline:
                    model(token, **{CACHE: cache})
                spans[side] = as_spans(timeline)
    del cache
    give_back(plan)
    sides = {side: _timed(samples[side]) | {"timeline": spans[side]} for side in samples}
    sides[OURS] |= found
    return {"memory": asdict(memory), "sides": sides}


def turns(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Decode two sequences of half the context together, and in turns."""
    model, context = models.whole(), plan.context // 2
    memory = plan_of(plan, model, context, plan.gpu_bytes, batch=2)
    hold_to(plan, plan.gpu_bytes)
    length = context - 2 * plan.steps - 2
    token = tokens_of(plan, 2).view(2, 1)
    watch("turns: together")
    cache = cache_of(plan, model, memory)
    fill(cache, length)
    together = _stepped(plan, model, cache, token, plan.steps)
    del cache
    give_back(plan)
    watch("turns: in turns")
    link = near_link(plan, model)
    samples = []
    with caches_in_turns(model, memory, 2, link) as caches:
        for cache in caches:
            fill(cache, length)
        for _ in range(4):
            wait(plan)
            began = perf_counter()
            take_turns(model, list(token.split(1)), caches, plan.steps // 4 + 1)
            wait(plan)
            samples.append((perf_counter() - began) / (plan.steps // 4))
    step = median(samples[1:])
    in_turns = {"samples_s": samples, "median_s": step, "tokens_per_s": 2 / step}
    together["tokens_per_s"] *= 2
    return {"memory": asdict(memory), "sides": {"together": together, "in turns": in_turns}}


def peer(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Measure transformers' own cache on the same model, under torch's attention."""
    del watch
    if plan.device != "cuda":
        return {"refused": "it needs a CUDA device"}
    model = models.whole()
    hold_to(plan, plan.gpu_bytes)
    reset_peak(plan)
    model.set_attn_implementation("sdpa")
    theirs = None
    try:
        steps = max(4, plan.steps // 4)
        theirs = offloading_cache(model, plan.context - steps - 1)
        token = tokens_of(plan, 1)
        return _stepped(plan, model, theirs, token, steps, untimed=2) | peak_of(plan)
    except torch.cuda.OutOfMemoryError as error:
        return {"refused": str(error)[:300]}
    finally:
        model.set_attn_implementation("tesseral")
        del theirs
        give_back(plan)


def _stepped(
    plan: Plan, model: Any, cache: Any, token: torch.Tensor, steps: int, untimed: int = _UNTIMED
) -> dict[str, Any]:
    samples = _steps(plan, model, cache, token, steps)
    return _timed(samples[min(untimed, len(samples) - 1) :])


def _steps(plan: Plan, model: Any, cache: Any, token: torch.Tensor, steps: int) -> list[float]:
    """Return the seconds of each of some steps."""
    samples = []
    for _ in range(steps):
        wait(plan)
        began = perf_counter()
        logits = model(token, **{CACHE: cache}).logits
        token = logits[:, -1:].argmax(-1)
        wait(plan)
        samples.append(perf_counter() - began)
    return samples


def _timed(samples: list[float]) -> dict[str, Any]:
    middle = median(samples)
    return {"samples_s": samples, "median_s": middle, "tokens_per_s": 1 / middle}


def prefill(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Read a prompt of the whole context within the budget."""
    model = models.whole()
    return _prompted(plan, model, plan.context, plan.gpu_bytes, 16, 4, watch, "prefill")


def million(plan: Plan, models: Models, watch: Watch) -> dict[str, Any]:
    """Read a longer prompt with keys and values of 4 bits, on a cut of the model."""
    model = models.cut()
    return _prompted(
        plan, model, plan.million, plan.million_bytes, 4, plan.new_tokens, watch, "million"
    )


def _prompted(
    plan: Plan, model: Any, context: int, gpu_bytes: int, bits: int, new: int, watch: Watch,
    name: str,
) -> dict[str, Any]:  # fmt: skip
    memory = plan_of(plan, model, context, gpu_bytes, bits)
    hold_to(plan, gpu_bytes)
    reset_peak(plan)
    began = perf_counter()
    cache = cache_of(plan, model, memory)
    wait(plan)
    allocated_s = perf_counter() - began
    tokens = tokens_of(plan, context - new)
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
                logits = model(piece, **{CACHE: cache}, logits_to_keep=1).logits
            spans = as_spans(timeline)
        else:
            logits = model(piece, **{CACHE: cache}, logits_to_keep=1).logits
            wait(plan)
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
        **peak_of(plan),
    }
