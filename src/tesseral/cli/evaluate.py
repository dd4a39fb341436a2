"""``tesseral eval``: perplexity of a model, its size, and how close it is to another."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral._errors import ParameterError
from tesseral.cli.console import print_json, print_table, progress
from tesseral.cli.inputs import Model, model_directory, require_llm, text_to_use
from tesseral.report.units import bytes_text
from tesseral.runtime.files import atomic_file


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
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure a model on a text: perplexity, with its cache as in generation, and sizes.

    Example: tesseral eval lm-5m-w4a4 --against embedded --sequence-length 512
    """
    if report is not None and against is None:
        raise ParameterError("eval: --report compares with the original; give --against ORIGINAL.")
    words = text_to_use(text, "test")
    require_llm("eval")
    record = measure(model, against, words, sequence_length, max_sequences)
    if report is not None and against is not None:
        _write_report(report, model, against, words, rows(record))
    if card:
        _write_card(record, text, max_sequences)
    if json:
        print_json(record)
    else:
        print_table(f"{model} on {text or 'the books in the package'}", *rows(record))


def _write_report(
    file: Path, model: str, against: str, text: str, measured: tuple[list[str], list[list[str]]]
) -> None:
    from tesseral import llm
    from tesseral.llm.block_error import block_errors
    from tesseral.llm.flatness import flatness
    from tesseral.report.evaluation import evaluation_page

    (ours, tokenizer), (original, _) = (llm.load(model_directory(m)) for m in (model, against))
    page = evaluation_page(
        model,
        measured,
        flatness(ours, tokenizer, text),
        flatness(original, tokenizer, text),
        block_errors(ours, original, tokenizer, text),
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
    model: str, against: str | None, text: str, sequence_length: int, max_sequences: int | None
) -> dict[str, Any]:
    """Return what the command prints, as plain values."""
    from tesseral import llm
    from tesseral.llm.evaluate import agreement
    from tesseral.llm.footprint import footprint
    from tesseral.llm.text import clip_length

    names = [model] if against is None else [model, against]
    paths = [model_directory(name) for name in names]
    models, tokenizers = zip(*(llm.load(path) for path in paths), strict=True)
    length = min(clip_length(m, sequence_length) for m in models)
    with progress() as bars:
        bar = bars.add_task("sequences", total=None)

        def show(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        options: dict[str, Any] = {"max_sequences": max_sequences, "report": show}
        if against is None:
            found = None
            values = [llm.perplexity(models[0], tokenizers[0], text, length, **options)]
        else:
            found = agreement(models[0], models[1], tokenizers[0], text, length, **options)
            values = [found.perplexity, found.reference_perplexity]
    record, *others = (
        {"model": name, "perplexity": value, **asdict(footprint(path, loaded))}
        for name, value, path, loaded in zip(names, values, paths, models, strict=True)
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
