"""``tesseral generate``: continue a prompt, word by word."""

from time import monotonic
from typing import Annotated

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

    Example: tesseral generate embedded --prompt "The old man opened the door and"
    """
    _refuse_undecodable(prompt)
    require_llm("generate")
    from tesseral import llm
    from tesseral.llm.streaming import TextWriter

    loaded, tokenizer = llm.load(model_directory(model))
    writer = TextWriter(tokenizer, (lambda _: None) if json else _write)
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
    if json:
        record = {"model": model, "prompt": prompt, "text": text, "n_tokens": count}
        print_json(record | {"elapsed_s": elapsed, "tokens_per_s": count / elapsed})
    else:
        _write("\n")
        speed = f"{count} tokens in {seconds_text(elapsed)}, {count / elapsed:.1f} tokens/s"
        typer.echo(f"{speed}, reading the prompt included", err=True)


def _write(text: str) -> None:
    """Write to stdout at once, so that a reader sees words as they come."""
    typer.echo(text, nl=False)  # echo flushes


def _refuse_undecodable(prompt: str) -> None:
    """Refuse what a shell passes on from bytes that are not UTF-8."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise DataError("--prompt is not UTF-8 text; convert it first.") from None
