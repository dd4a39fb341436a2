"""Making the models, asking the sides in turns, and whether what must hold does."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tesseral.bench.ceilings import measure_ceilings
from tesseral.bench.llm import cases
from tesseral.bench.llm.cases import Plan
from tesseral.bench.llm.gguf_file import FORMATS, write_gguf
from tesseral.bench.llm.process import SideProcess, started
from tesseral.bench.timing import Timing, ratio
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.quantization import QuantizationConfig
from tesseral.runtime.cpu import cpu_threads
from tesseral.runtime.machine import machine_record

Watch = Callable[[str], None]
"""Told what is done next."""

CONFIG = QuantizationConfig(
    transform="hadamard", rounding="nearest", samples=1, sequence_length=16, batch_size=1
)
"""Transforms that need no calibration: the speed is that of any others of their sizes."""


def run(
    plan: Plan, folder: Path, watch: Watch, *, threads: int | None, quality_of: Path | None = None
) -> dict[str, Any]:
    """Measure everything and return a record of plain values.

    Parameters
    ----------
    plan : Plan
        What to measure.
    folder : Path
        Where models are made, and found if they were made before.
    watch : callable
        Told what is done next.
    threads : int, optional
        Threads of all sides.
    quality_of : Path, optional
        A model directory that is quantised in the same way and compared with itself.
    """
    count, start = cpu_threads(threads), time.time()
    sides = make_sides(plan, folder, watch)
    record = {
        "machine": asdict(machine_record()),
        "threads": count,
        "plan": asdict(plan),
        "read_bytes_per_s": measure_ceilings(count).read,
        "sides": _measure(plan, sides, count, watch),
        "memory": _memory(plan, sides, count, watch) if plan.long else {},
        "quality": {} if quality_of is None else _quality(quality_of, folder, watch),
    }
    record["bars"] = bars(record)
    record["elapsed_s"] = time.time() - start
    return record


def make_sides(plan: Plan, folder: Path, watch: Watch) -> list[dict[str, Any]]:
    """Make the models that are not there yet, and return descriptions of all sides.

    llama.cpp takes part where ``llama_cpp`` and ``gguf`` are installed.
    """
    from tesseral.llm import quantize
    from tesseral.llm.random_model import write_random_llama

    original, ours = folder / "original", folder / "w4a4kv4"
    if not original.exists():
        watch("random weights")
        write_random_llama(original, load_embedded_lm(), **plan.shape)
    if not ours.exists():
        watch("quantisation")
        quantize(original, CONFIG, load_books_excerpt("calibration"), ours)
    sides: list[dict[str, Any]] = [
        {"name": name, "kind": "transformers", "path": str(path), "attention": attention}
        for name, path, attention in [
            (cases.OURS, ours, "tesseral"),
            (cases.BFLOAT16, original, "sdpa"),
        ]
    ]
    if all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf")):
        for form in FORMATS:
            file, name = folder / f"{form}.gguf", cases.LLAMA_CPP.format(form)
            if not file.exists():
                watch(name)
                write_gguf(original, file.with_suffix(".part"), form).rename(file)
            context = plan.shape["max_position_embeddings"]
            sides.append({"name": name, "kind": "llama.cpp", "path": str(file), "context": context})
    return sides


def _measure(
    plan: Plan, sides: list[dict[str, Any]], threads: int, watch: Watch
) -> dict[str, dict[str, Any]]:
    """Return, by side, times to read, to answer a short prompt, and to generate a token."""
    prompt = tokens(plan.prompt, plan)
    samples: dict[str, dict[str, list[float]]] = {
        side["name"]: {"prefill": [], "first": [], "decode": []} for side in sides
    }
    weights: dict[str, int] = {}
    with started(sides, threads) as processes:
        names = list(processes)
        for name in names:
            watch(f"{name}: warm up")
            processes[name].ask(do="prefill", tokens=prompt[: plan.short])
            processes[name].ask(do="decode", count=2)
        for repeat in range(plan.repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                watch(f"{name}: {repeat + 1} of {plan.repeats}")
                found, process = samples[name], processes[name]
                found["first"].append(_seconds(process, "prefill", prompt[: plan.short]))
                found["prefill"].append(_seconds(process, "prefill", prompt))
                answer = process.ask(do="decode", count=plan.generated)
                found["decode"].append(answer["seconds"] / plan.generated)
                weights[name] = answer["weight_bytes"]
    return {name: _summary(samples[name], weights[name], plan) for name in names}


def _summary(samples: dict[str, list[float]], weight_bytes: int, plan: Plan) -> dict[str, Any]:
    times = {
        what: Timing(samples_s=tuple(found), calls=1).as_dict() for what, found in samples.items()
    }
    return {
        **times,
        "weight_bytes": weight_bytes,
        "prefill_tokens_per_s": plan.prompt / times["prefill"]["median_s"],
        "decode_tokens_per_s": 1 / times["decode"]["median_s"],
        "first_token_s": times["first"]["median_s"],
    }


def _seconds(process: SideProcess, do: str, prompt: list[int]) -> float:
    seconds: float = process.ask(do=do, tokens=prompt)["seconds"]
    return seconds


def _memory(
    plan: Plan, sides: list[dict[str, Any]], threads: int, watch: Watch
) -> dict[str, int | None]:
    """Return the peak of each side's process above what its imports take, one at a time."""
    found = {}
    for side in sides:
        watch(f"{side['name']}: memory at {plan.long} tokens")
        with started([side], threads) as processes:
            process = processes[side["name"]]
            process.ask(do="prefill", tokens=tokens(plan.long, plan))
            found[side["name"]] = process.ask(do="decode", count=4)["peak_bytes"]
    return found


def _quality(original: Path, folder: Path, watch: Watch) -> dict[str, Any]:
    """Quantise a trained model in the same way and return how well it predicts a text."""
    from tesseral.llm import load, quantize
    from tesseral.llm.evaluate import agreement

    watch(f"{original.name}: quality")
    ours = folder / f"{original.name}-w4a4kv4"
    if not ours.exists():
        quantize(original, CONFIG, load_books_excerpt("calibration"), ours)
    model, tokenizer = load(ours)
    reference, _ = load(original)
    text = load_books_excerpt("test")
    found = agreement(model, reference, tokenizer, text, 512, max_sequences=16)
    return {"model": original.name, **asdict(found), "ratio": found.ratio}


def bars(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what must hold, what was found, and whether it holds."""
    sides, memory = record["sides"], record["memory"]
    found = [
        _bar(f"{what}, times as fast as {peer}", _times_as_fast(sides, what, peer), limit)
        for what, peer, limit in cases.BARS
        if peer in sides
    ]
    ours, theirs = memory.get(cases.OURS), memory.get(cases.BFLOAT16)
    if ours and theirs:
        share = ours / theirs
        name = f"peak memory, share of {cases.BFLOAT16}"
        found.append(_bar(name, share, cases.LARGEST_MEMORY, below=True))
    return found


def _times_as_fast(sides: dict[str, Any], what: str, peer: str) -> float:
    theirs, ours = (Timing.from_dict(sides[name][what]) for name in (peer, cases.OURS))
    return ratio(theirs, ours)


def _bar(name: str, value: float, limit: float, *, below: bool = False) -> dict[str, Any]:
    holds = value <= limit if below else value >= limit
    return {"name": name, "value": value, "limit": limit, "below": below, "holds": holds}


def tokens(count: int, plan: Plan) -> list[int]:
    """Return random tokens, the same each time."""
    found: list[int] = (
        np.random.default_rng(0).integers(1, plan.shape["vocab_size"], count).tolist()
    )
    return found
