"""``tesseral eval``: perplexity of a model, its size, and how close it is to another."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from tesseral._errors import ParameterError
from tesseral.cli.console import print_json, print_table, progress
from tesseral.cli.inputs import Device, Model, model_directory, require_llm, text_to_use
from tesseral.report.units import bytes_text
from tesseral.runtime.files import atomic_file

DTYPES = ("float32", "bfloat16", "float16")


class Loaded(NamedTuple):
    """A model that was named, where it lies, and what transformers makes of it."""

    name: str
    path: Path
    model: Any
    tokenizer: Any


def evaluate(
    model: Model,
    text: Annotated[
        Path | None, typer.Option(help="Text, UTF-8.", show_default="books in the package")
    ] = None,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens in a sequence, at most the model's maximum.")
    ] = 1024,
    max_sequences: Annotated[
        int | None, typer.Option(help="Stop after this many sequences.", show_default="all")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGINAL",
            help="The model it was made from: also measure how well the two agree.",
            show_default="none",
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Also write the result into the model's card.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            help="HTML file to write, with pictures of how flat both models are; needs --against.",
            show_default="none",
        ),
    ] = None,
    device: Device = "cpu",
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"Type of what is not quantised: {', '.join(DTYPES)}.",
            show_default="float32 on the CPU, elsewhere the model's own",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a model on a text: perplexity, agreement and sizes.

    Perplexity goes through the cache as in generation.

    Example: tesseral eval lm-5m-w4a4 --against embedded --sequence-length 512
    """
    if report is not None and against is None:
        raise ParameterError("eval: --report compares with the original; give --against ORIGINAL.")
    if dtype is not None and dtype not in DTYPES:
        raise ParameterError(f"eval: --dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    words = text_to_use(text, "test")
    require_llm("eval")
    ours = _load(model, device, dtype)
    original = None if against is None else _load(against, device, dtype)
    record = measure(ours, original, words, sequence_length, max_sequences)
    if report is not None and original is not None:
        _write_report(report, ours, original, words, rows(record))
    if card:
        _write_card(record, text, max_sequences)
    if json:
        print_json(record)
    else:
        print_table(f"{model} on {text or 'the books in the package'}", *rows(record))


def _load(name: str, device: str, dtype: str | None) -> Loaded:
    import torch

    from tesseral import llm

    path, kind = model_directory(name), None if dtype is None else getattr(torch, dtype)
    return Loaded(name, path, *llm.load(path, dtype=kind, device=device))


def _write_report(
    file: Path,
    ours: Loaded,
    original: Loaded,
    text: str,
    measured: tuple[list[str], list[list[str]]],
) -> None:
    from tesseral.llm.block_error import block_errors
    from tesseral.llm.flatness import flatness
    from tesseral.report.evaluation import evaluation_page

    page = evaluation_page(
        ours.name,
        measured,
        flatness(ours.model, ours.tokenizer, text),
        flatness(original.model, ours.tokenizer, text),
        block_errors(ours.model, original.model, ours.tokenizer, text),
    )
    with atomic_file(file, overwrite=True) as new:
        new.write_text(page, encoding="utf-8")


def _write_card(record: dict[str, Any], text: Path | None, max_sequences: int | None) -> None:
    from tesseral.llm.card import write_measured

    source = "the books in the package" if text is None else f"`{text.name}`"
    number = "All" if max_sequences is None else f"The first {max_sequences}"
    words = (
        f"{number} sequences of {record['sequence_length']} tokens of {source}, through the packed "
        "weights and the packed cache."
    )
    columns, cells = rows(record)
    columns = ["", "this", "original"][: len(columns)]
    write_measured(model_directory(record["model"]), words, columns, cells)


def measure(
    ours: Loaded,
    original: Loaded | None,
    text: str,
    sequence_length: int,
    max_sequences: int | None,
) -> dict[str, Any]:
    """Return what the command prints, as plain values."""
    from tesseral import llm
    from tesseral.llm.evaluate import agreement
    from tesseral.llm.footprint import footprint
    from tesseral.llm.text import clip_length

    both = [ours] if original is None else [ours, original]
    length = min(clip_length(one.model, sequence_length) for one in both)
    with progress() as bars:
        bar = bars.add_task("sequences", total=None)

        def show(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        options: dict[str, Any] = {"max_sequences": max_sequences, "report": show}
        if original is None:
            found = None
            values = [llm.perplexity(ours.model, ours.tokenizer, text, length, **options)]
        else:
            found = agreement(ours.model, original.model, ours.tokenizer, text, length, **options)
            values = [found.perplexity, found.reference_perplexity]
    record, *others = (
        {"model": one.name, "perplexity": value, **asdict(footprint(one.path, one.model))}
        for one, value in zip(both, values, strict=True)
    )
    record["sequence_length"] = length
    if found is not None:
        record |= {
            "against": others[0],
            "perplexity_ratio": found.ratio,
            "top1_agreement": found.top1,
            "kl_divergence": found.kl_divergence,
        }
    return record


def rows(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of the table that shows a record."""
    models = [record] if "against" not in record else [record, record["against"]]
    lines = {
        "perplexity": [f"{m['perplexity']:.3f}" for m in models],
        "weights on disk": [bytes_text(m["disk_bytes"]) for m in models],
        "in memory": [bytes_text(m["memory_bytes"]) for m in models],
        "decoder blocks": [bytes_text(m["block_bytes"]) for m in models],
        "cache per token": [bytes_text(m["cache_bytes_per_token"]) for m in models],
    }
    if "against" in record:
        lines |= {
            "perplexity ratio": [f"{record['perplexity_ratio']:.4f}"],
            "top-1 agreement": [f"{record['top1_agreement']:.1%}"],
            "KL divergence": [f"{record['kl_divergence']:.4f} nats"],
        }
    cells = [[name, *values, *[""] * (len(models) - len(values))] for name, values in lines.items()]
    return ["", *(m["model"] for m in models)], cells
