"""``tesseral generate``: continue a prompt, word by word."""

from contextlib import ExitStack
from time import monotonic
from typing import Annotated, Any

import typer

from tesseral._errors import DataError
from tesseral.cli.console import print_json
from tesseral.cli.inputs import Model, model_directory, require_llm
from tesseral.report.units import seconds_text


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to continue.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 64,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token; above, tokens are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Fixes what is drawn.")] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="Print text and speed as JSON, when all is done.")
    ] = False,
) -> None:
    """Continue a prompt with a language model; its speed goes to stderr.

    Started by torchrun, the model is divided among its ranks, and the first one writes.

    Example: tesseral generate embedded --prompt "The old man opened the door and"
    """
    _refuse_undecodable(prompt)
    require_llm("generate")
    from tesseral import llm
    from tesseral.llm.streaming import TextWriter

    with ExitStack() as stack:
        loaded, tokenizer, rank = _loaded(model, stack)
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
        )
        elapsed, count = monotonic() - started, writer.n_tokens
    if rank:
        return
    if json:
        record = {"model": model, "prompt": prompt, "text": text, "n_tokens": count}
        print_json(record | {"elapsed_s": elapsed, "tokens_per_s": count / elapsed})
    else:
        _write("\n")
        speed = f"{count} tokens in {seconds_text(elapsed)}, {count / elapsed:.1f} tokens/s"
        typer.echo(f"{speed}, reading the prompt included", err=True)


def _loaded(model: str, stack: ExitStack) -> tuple[Any, Any, int]:
    """Return model, tokenizer and which rank this is."""
    from tesseral import llm
    from tesseral.attention.distributed.launch import joined, launched

    directory = model_directory(model)
    if not launched():
        return *llm.load(directory), 0
    import torch.distributed as dist

    device = stack.enter_context(joined())
    return *llm.load_parallel(directory, device=device), dist.get_rank()


def _write(text: str) -> None:
    """Write to stdout at once, so that a reader sees words as they come."""
    typer.echo(text, nl=False)  # echo flushes


def _refuse_undecodable(prompt: str) -> None:
    """Refuse what a shell passes on from bytes that are not UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DataError("--prompt is not UTF-8 text; convert it first.") from None
