"""``tesseral generate``: continue a prompt, word by word."""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesseral._errors import DataError, ParameterError
from tesseral.cli.console import print_json
from tesseral.cli.inputs import RANK_DEFAULT, Model, model_directory, read_text, require_llm
from tesseral.cli.sizes import parse_bytes
from tesseral.report.units import seconds_text

if TYPE_CHECKING:
    from tesseral.llm import MemoryPlan


def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option(help="Text to continue.", show_default=False)
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to continue, in a file.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Fixes what is drawn.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="Where the model is: cpu or cuda.", show_default=RANK_DEFAULT),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory of each device that may be taken, such as 32GB; keys and values that do "
            "not fit lie in the host's memory.",
        ),
    ] = None,
    host_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of the host for these.", show_default="what is available"
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens to have room for, with --gpu-memory.", show_default="the model's maximum"
        ),
    ] = None,
    kv_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of keys and values, with --gpu-memory: 16, 8 or 4.",
            show_default="the model's",
        ),
    ] = None,
    divide: Annotated[
        str | None,
        typer.Option(
            metavar="model|context",
            help="What ranks of torchrun divide: the model, or keys and values of the context.",
            show_default="model",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print text and speed as JSON, when all is done.")
    ] = False,
) -> None:
    """Continue a prompt with a language model.

    Its speed goes to stderr.

    Started by torchrun, the model is divided among its ranks, or the context's keys and values
    are, and the first one writes.

    Example: tesseral generate embedded --prompt "The old man opened the door and"
    """
    prompt = _one_prompt(prompt, prompt_file)
    require_llm("generate")
    from tesseral import llm
    from tesseral.llm.streaming import TextWriter

    directory = model_directory(model)
    sizes = _sizes(gpu_memory, host_memory, context, None if divide == "context" else kv_bits)
    _check_divide(divide, sizes)
    with ExitStack() as stack:
        loaded, tokenizer, rank, plan = _loaded(directory, device, sizes, stack, divide)
        cache = None
        if divide == "context":
            cache = partial(llm.SequenceCache, loaded, kv_bits=kv_bits)
        writer = TextWriter(tokenizer, (lambda _: None) if json or rank else _write)
        started = monotonic()
        text = llm.generate(
            loaded,
            tokenizer,
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            streamer=writer,
            plan=plan,
            cache=cache,
        )
        elapsed, count = monotonic() - started, writer.n_tokens
        taken = None if plan is None else _taken(loaded)
    if rank:
        return
    if json:
        record = {"model": model, "prompt": prompt, "text": text, "n_tokens": count}
        record |= {} if taken is None else {"device_bytes": taken}
        print_json(record | {"elapsed_s": elapsed, "tokens_per_s": count / elapsed})
    else:
        _write("\n")
        speed = f"{count} tokens in {seconds_text(elapsed)}, {count / elapsed:.1f} tokens/s"
        typer.echo(f"{speed}, reading the prompt included", err=True)
    if plan is not None and taken is not None and taken > plan.gpu_bytes:
        typer.echo(
            f"tesseral: {taken / 1e9:.2f} GB of the device's memory were taken, more than "
            "--gpu-memory; give less to stay within it",
            err=True,
        )


_Sizes = tuple[int, int | None, int | None, int | None]
"""Memory of device and host, tokens, bits of keys and values."""


def _sizes(
    gpu_memory: str | None, host_memory: str | None, context: int | None, kv_bits: int | None
) -> _Sizes | None:
    """Return what memory may be taken, if that is limited."""
    if gpu_memory is None:
        for name, given in (
            ("--host-memory", host_memory),
            ("--context", context),
            ("--kv-bits", kv_bits),
        ):
            if given is not None:
                raise ParameterError(f"generate: {name} is for --gpu-memory; give that too.")
        return None
    host = None if host_memory is None else parse_bytes(host_memory, "--host-memory")
    return parse_bytes(gpu_memory, "--gpu-memory"), host, context, kv_bits


def _check_divide(divide: str | None, sizes: _Sizes | None) -> None:
    """Refuse to divide what cannot be, or where there is nobody to divide it among."""
    from tesseral.attention.distributed.launch import launched

    if divide not in (None, "model", "context"):
        raise ParameterError(f"generate: --divide must be model or context, got {divide!r}.")
    if divide is not None and not launched():
        raise ParameterError("generate: --divide is for ranks; start them by torchrun.")
    if sizes is not None and divide == "context":
        raise ParameterError("generate: --gpu-memory is for --divide model, not for context.")


def _taken(model: Any) -> int | None:
    """Return the most memory of a CUDA device that was set aside; ``None`` elsewhere."""
    import torch

    cuda = model.device.type == "cuda"
    return torch.cuda.max_memory_reserved(model.device) if cuda else None


def _planned(model: Any, sizes: _Sizes, ranks: int = 1) -> "MemoryPlan":
    """Return the plan for a model, or for the one in a directory, if it can be run."""
    from tesseral.llm import plan_memory
    from tesseral.llm.cooperative.shape import longest

    gpu, host, context, bits = sizes
    tokens = longest(model) if context is None else context
    return plan_memory(model, tokens, gpu, host, kv_bits=bits, ranks=ranks).require()


def _shared(sizes: _Sizes) -> _Sizes:
    """Return the same with a rank's part of the host's memory, the least that any rank finds."""
    import torch.distributed as dist
    from psutil import virtual_memory  # type: ignore[import-untyped]

    gpu, host, context, bits = sizes
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, virtual_memory().available if host is None else host)
    return gpu, min(found) // int(os.environ["LOCAL_WORLD_SIZE"]), context, bits


def _one_prompt(prompt: str | None, file: Path | None) -> str:
    """Return the text to continue, given in one of two ways."""
    if (prompt is None) == (file is None):
        raise ParameterError("generate: give --prompt or --prompt-file, one of them.")
    if file is not None:
        return read_text(file)
    assert prompt is not None
    _refuse_undecodable(prompt)
    return prompt


def _loaded(
    directory: Path, device: str | None, sizes: _Sizes | None, stack: ExitStack, divide: str | None
) -> tuple[Any, Any, int, "MemoryPlan | None"]:
    """Return model, tokenizer, which rank this is and where its cache is to be."""
    from tesseral import llm
    from tesseral.attention.distributed.launch import joined, launched

    if not launched():
        if sizes is not None:
            _planned(directory, sizes)  # said before anything is loaded
        loaded, tokenizer = llm.load(directory, device=device or "cpu")
        return loaded, tokenizer, 0, None if sizes is None else _planned(loaded, sizes)
    import torch.distributed as dist

    rank_device = stack.enter_context(joined(kind=device))
    if sizes is not None:
        sizes = _shared(sizes)
        _planned(directory, sizes, dist.get_world_size())
    load = llm.load if divide == "context" else llm.load_parallel
    loaded, tokenizer = load(directory, device=rank_device)
    return loaded, tokenizer, dist.get_rank(), None if sizes is None else _planned(loaded, sizes)


def _write(text: str) -> None:
    """Write to stdout at once, so that a reader sees words as they come."""
    typer.echo(text, nl=False)  # echo flushes


def _refuse_undecodable(prompt: str) -> None:
    """Refuse what a shell passes on from bytes that are not UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DataError("--prompt is not UTF-8 text; convert it first.") from None
