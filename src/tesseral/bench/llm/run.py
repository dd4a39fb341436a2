"""Making the models, asking the sides in turns, and whether what must hold does."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tesseral.bench.ceilings import measure_ceilings
from tesseral.bench.llm import cases
from tesseral.bench.llm.cases import Plan
from tesseral.bench.llm.gguf_file import FORMATS, write_gguf
from tesseral.bench.llm.process import SideProcess, started
from tesseral.bench.steps import Steps
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

QUALITY = QuantizationConfig(epochs=0, samples=32, sequence_length=512, batch_size=4)
"""For a trained model: the product's own, with transforms as they start, which takes a minute."""

QUALITY_LENGTH, QUALITY_SEQUENCES = 512, 16


def run(
    plan: Plan,
    folder: Path,
    watch: Watch,
    *,
    threads: int | None,
    quality_of: Path | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Measure everything and return a record of plain values.

    Each turn of a side is a step with a process of its own. What is done is kept in the file
    ``kept`` until all is; see :class:`Steps`.

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
        A trained Llama whose perplexity is measured in full precision, ours and llama.cpp's.
    kept : Path, optional
        File that an interrupted run goes on from.
    """
    count, machine = cpu_threads(threads), asdict(machine_record())
    sides = make_sides(plan, folder, watch)
    key = {"plan": asdict(plan), "threads": count, "machine": machine}
    key |= {"sides": sides, "quality": str(quality_of)}
    steps = Steps(kept, key, "bench/llm", "llm", "core", "quantization", "attention", "runtime")
    read = steps.get("ceilings", lambda: measure_ceilings(count).read)
    measured = _measure(plan, sides, count, watch, steps)
    record = {
        "machine": machine,
        "threads": count,
        "plan": asdict(plan),
        "read_bytes_per_s": read,
        "sides": measured,
        "memory": _memory(plan, sides, measured, count, watch, steps) if plan.long else {},
        "quality": {} if quality_of is None else _quality(quality_of, folder, watch, steps),
    }
    record["bars"] = bars(record)
    steps.finish()
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
    if has_llama_cpp():
        for form in FORMATS:
            file, name = folder / f"{form}.gguf", cases.LLAMA_CPP.format(form)
            _write_gguf_once(original, file, form, partial(watch, name))
            context = plan.shape["max_position_embeddings"]
            sides.append({"name": name, "kind": "llama.cpp", "path": str(file), "context": context})
    return sides


def _measure(
    plan: Plan, sides: list[dict[str, Any]], threads: int, watch: Watch, steps: Steps
) -> dict[str, dict[str, Any]]:
    """Return, by side, times to read, to answer a short prompt, and to generate a token.

    Sides take turns, each time in another order; slow ones fewer.
    """
    turns: dict[str, list[dict[str, Any]]] = {side["name"]: [] for side in sides}
    for repeat in range(plan.repeats):
        first = repeat % len(sides)
        for side in sides[first:] + sides[:first]:
            name, taken = f"{side['name']}: {repeat + 1} of {plan.repeats}", turns[side["name"]]
            if sum(turn["seconds"] for turn in taken) <= plan.turns_s:
                watch(name)
                taken.append(steps.get(name, partial(_turn, plan, side, threads)))
    return {name: _summary(found, plan) for name, found in turns.items()}


def _turn(plan: Plan, side: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return what one side takes, in a process that has warmed up.

    Where bfloat16 is slow, it reads a part of the prompt, which is less for each token than the
    whole, and generates behind random keys and values of the rest.
    """
    begun, prompt, n_read = time.monotonic(), tokens(plan.prompt, plan), plan.prompt
    with started([side], threads) as processes:
        process = processes[side["name"]]
        process.ask(do="prefill", tokens=prompt[: plan.short // 4])
        process.ask(do="decode", count=2)
        first = _seconds(process, "prefill", prompt[: plan.short])
        if side["name"] == cases.BFLOAT16 and first * plan.prompt / plan.short > plan.reading_s:
            n_read = plan.prompt // cases.PART
        prefill = _seconds(process, "prefill", prompt[:n_read]) * plan.prompt / n_read
        if n_read < plan.prompt:
            process.ask(do="fill", count=plan.prompt - n_read)
        answer = process.ask(do="decode", count=plan.generated)
    return {
        "first": first,
        "prefill": prefill,
        "decode": answer["seconds"] / plan.generated,
        "tokens_read": n_read,
        "weight_bytes": answer["weight_bytes"],
        "seconds": time.monotonic() - begun,
    }


def _summary(turns: list[dict[str, Any]], plan: Plan) -> dict[str, Any]:
    times = {
        what: Timing(samples_s=tuple(turn[what] for turn in turns), calls=1).as_dict()
        for what in ("prefill", "first", "decode")
    }
    return {
        **times,
        "tokens_read": [turn["tokens_read"] for turn in turns],
        "weight_bytes": turns[0]["weight_bytes"],
        "prefill_tokens_per_s": plan.prompt / times["prefill"]["median_s"],
        "decode_tokens_per_s": 1 / times["decode"]["median_s"],
        "first_token_s": times["first"]["median_s"],
    }


def _seconds(process: SideProcess, do: str, prompt: list[int]) -> float:
    seconds: float = process.ask(do=do, tokens=prompt)["seconds"]
    return seconds


def _memory(
    plan: Plan,
    sides: list[dict[str, Any]],
    measured: dict[str, dict[str, Any]],
    threads: int,
    watch: Watch,
    steps: Steps,
) -> dict[str, int | None]:
    """Return the peak of each side's process above what its imports take, one at a time.

    Where bfloat16 is slow, its products are left out. Slow peers without a bar are left out.
    """

    def peak(side: dict[str, Any], computes: bool) -> int | None:
        with started([side], threads) as processes:
            process = processes[side["name"]]
            request = {"do": "prefill" if computes else "allocate"}
            process.ask(**request, tokens=tokens(plan.long, plan))
            found: int | None = process.ask(do="decode", count=4)["peak_bytes"]
        return found

    found: dict[str, int | None] = {}
    for side in sides:
        name, times = side["name"], measured[side["name"]]
        seconds = plan.long / times["prefill_tokens_per_s"]
        if name not in (cases.OURS, cases.BFLOAT16) and seconds > plan.reading_s:
            continue
        computes = min(times["tokens_read"]) == plan.prompt
        step = f"{name}: memory at {plan.long} tokens"
        watch(step)
        found[name] = steps.get(step, partial(peak, side, computes))
    return found


def _quality(original: Path, folder: Path, watch: Watch, steps: Steps) -> dict[str, Any]:
    """Return how well a trained model predicts a text: in full precision, ours, llama.cpp's."""
    from tesseral.llm import load, quantize
    from tesseral.llm.evaluate import agreement

    ours = folder / f"{original.name}-w4a4kv4"
    if not ours.exists():
        watch(f"{original.name}: quantisation")
        quantize(original, QUALITY, load_books_excerpt("calibration"), ours)
    text = load_books_excerpt("test")

    def compared() -> dict[str, Any]:
        model, tokenizer = load(ours)
        reference, _ = load(original)
        found = agreement(
            model, reference, tokenizer, text, QUALITY_LENGTH, max_sequences=QUALITY_SEQUENCES
        )
        return {"model": original.name, **asdict(found), "ratio": found.ratio}

    watch(f"{original.name}: quality")
    found: dict[str, Any] = steps.get("quality", compared)
    return found | {"peers": _quality_of_peers(original, folder, text, watch, steps)}


def _quality_of_peers(
    original: Path, folder: Path, text: str, watch: Watch, steps: Steps
) -> dict[str, float]:
    """Return the perplexity of llama.cpp's formats on the same tokens, where it is installed."""
    from tesseral.llm.loading import read_config, read_tokenizer
    from tesseral.llm.text import consecutive

    if not has_llama_cpp() or read_config(original)["model_type"] != "llama":
        return {}
    tokenizer = read_tokenizer(original)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    sequences = consecutive(ids, QUALITY_LENGTH)[:QUALITY_SEQUENCES].tolist()

    def perplexity(file: Path) -> float:
        from tesseral.bench.llm.sides import llama_cpp_loss

        losses = [llama_cpp_loss(file, sequence) for sequence in sequences]
        return float(np.exp(np.mean(losses)))

    found = {}
    for form in FORMATS:
        file, name = folder / f"{original.name}-{form}.gguf", cases.LLAMA_CPP.format(form)
        watch(f"{original.name}: {name}")
        _write_gguf_once(original, file, form)
        found[name] = steps.get(f"{name}: quality", partial(perplexity, file))
    return found


def has_llama_cpp() -> bool:
    """Whether llama.cpp can take part."""
    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def _write_gguf_once(
    original: Path, file: Path, form: str, begins: Callable[[], object] = lambda: None
) -> None:
    if not file.exists():
        begins()
        write_gguf(original, file.with_suffix(".part"), form).rename(file)


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
    """Return the median over the turns that both took; a slow side takes fewer."""
    samples = [sides[name][what]["samples_s"] for name in (peer, cases.OURS)]
    both = min(map(len, samples))
    theirs, ours = (Timing(samples_s=tuple(taken[:both]), calls=1) for taken in samples)
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
