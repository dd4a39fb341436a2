"""``tesseral analyze``: a language model looked at as tensors, with advice for quantising it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesseral._errors import ParameterError
from tesseral.cli.console import print_json, print_table, progress
from tesseral.cli.inputs import Device, Model, Overwrite, model_directory, require_llm, text_to_use

if TYPE_CHECKING:
    from tesseral.llm.analysis import Analysis

_WIDTHS = "2,3,4,5,6,8"


def analyze(
    model: Model,
    text: Annotated[
        Path | None,
        typer.Option(help="Text to read, UTF-8.", show_default="books in the package"),
    ] = None,
    bits: Annotated[float, typer.Option(help="Average width to advise.")] = 4,
    weight_bits: Annotated[
        float | None, typer.Option(help="Average of weights.", show_default="BITS")
    ] = None,
    activation_bits: Annotated[
        float | None, typer.Option(help="Average of inputs.", show_default="BITS")
    ] = None,
    widths: Annotated[
        str,
        typer.Option(help="Widths to measure and choose from; 2, 4 and 8 are those stored."),
    ] = _WIDTHS,
    transform: Annotated[
        str,
        typer.Option(help="Compare losses after it: hadamard, as for learned ones, or none."),
    ] = "hadamard",
    groups: Annotated[str, typer.Option(help="Groups of heads: a number, or bic.")] = "bic",
    sequences: Annotated[int, typer.Option(help="Sequences to read.")] = 4,
    sequence_length: Annotated[
        int, typer.Option(help="Tokens in each, at most the model's maximum.")
    ] = 256,
    seed: Annotated[int, typer.Option(help="Fixes everything random.")] = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Directory to write.")] = Path("analysis"),
    overwrite: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Explain a model's rounding errors by tensors, and advise widths.

    Attention heads are clustered by the block model, errors of rounding each layer explained by
    tensor regression.

    OUT gets report.html, advice.json for quantize --advice, and the tensors as an .npz file.

    Example: tesseral analyze embedded --bits 4 --out analysis
    """
    chosen, count = _numbers(widths), _groups(groups)
    source, words = model_directory(model), text_to_use(text, "calibration")
    require_llm("analyze")
    from tesseral.llm import analysis
    from tesseral.report.analysis.files import as_dict, write_analysis
    from tesseral.report.charts import require_matplotlib
    from tesseral.runtime.files import check_output
    from tesseral.runtime.machine import machine_record

    require_matplotlib()
    check_output(out, overwrite=overwrite)
    with progress() as bars:
        task = bars.add_task("")
        found = analysis.analyze(
            source,
            words,
            weight_bits=bits if weight_bits is None else weight_bits,
            activation_bits=bits if activation_bits is None else activation_bits,
            widths=chosen,
            transform=transform,
            n_groups=count,
            sequences=sequences,
            sequence_length=sequence_length,
            seed=seed,
            device=device,
            watch=lambda stage, done, total: bars.update(
                task, description=stage, completed=done, total=total
            ),
        )
    write_analysis(found, machine_record().as_dict(), out, overwrite=overwrite)
    if json:
        print_json({"report": str(out / "report.html"), **as_dict(found)})
    else:
        _show(found, out)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(f"--widths must be numbers as {_WIDTHS}; got {text}.") from None


def _groups(text: str) -> Any:
    if text == "bic":
        return text
    try:
        return int(text)
    except ValueError:
        raise ParameterError(f"--groups must be a number, or bic; got {text}.") from None


def _show(found: "Analysis", out: Path) -> None:
    from tesseral.report.analysis.files import ADVICE
    from tesseral.report.analysis.tables import advice_table, effects_table, groups_table

    columns, rows = groups_table(found)
    print_table("Groups of heads", columns[:3], [row[:3] for row in rows])
    words = f"log2(error), with {found.effects.level:.0%} intervals"
    print_table(words, *effects_table(found.effects))
    print_table("Advised widths", *advice_table(found))
    advice = found.advice
    typer.echo(
        f"average bits: weights {advice.weight_bits:.3f}, inputs {advice.activation_bits:.3f}; "
        f"expected loss {advice.loss:.4f} nats a token, the same everywhere "
        f"{advice.uniform_loss:.4f}"
    )
    typer.echo(f"wrote {out / 'report.html'} and {out / ADVICE}")
