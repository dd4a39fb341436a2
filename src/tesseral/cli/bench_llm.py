"""``tesseral bench llm``: language models end to end, against others on the same weights."""

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from tesseral._errors import ParameterError
from tesseral.cli.bench_linear import check_device
from tesseral.cli.bench_options import (
    Overwrite,
    Threads,
    check_files,
    file_to_write,
    save,
    save_json,
)
from tesseral.cli.console import print_table, progress
from tesseral.cli.inputs import EMBEDDED, model_directory, require_llm


def llm(
    json: Annotated[
        Path | None,
        file_to_write(
            "Write all numbers here, as JSON; with --models, an interrupted run goes on."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to measure: cpu, or cuda with a model of 8 B weights.")
    ] = "cpu",
    png: Annotated[
        Path | None, file_to_write("Draw a chart of a CUDA device here, as a PNG image.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep the models made here, 4 GB or so, and use those that are there.",
            show_default="a temporary one",
        ),
    ] = None,
    quality_of: Annotated[
        str,
        typer.Option(metavar="MODEL", help=f"Trained model whose loss is measured; or {EMBEDDED}."),
    ] = EMBEDDED,
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure once, and no peak memory.")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny model, to try the benchmark itself.")
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure a whole model against transformers and llama.cpp.

    It has 1.1 B random weights, ours in 4 bits. llama.cpp takes part where llama-cpp-python and
    gguf are installed. On a CUDA device the model has 8 B weights, with --quick 4 of its 32 blocks,
    and the peer is transformers in float16.

    Example: tesseral bench llm --json llm.json --models /tmp/models
    """
    require_llm("bench llm")
    check_device(device)
    if device == "cuda":
        on_cuda(json, png, quick=quick or smoke, overwrite=overwrite)
        return
    if png is not None:
        raise ParameterError("bench llm: --png draws what --device cuda measures.")
    from tesseral.bench.llm.cases import FULL, QUICK, SMOKE
    from tesseral.bench.llm.run import run
    from tesseral.bench.steps import beside

    check_files(json, overwrite=overwrite)
    plan = SMOKE if smoke else QUICK if quick else FULL
    with _folder(models) as folder, progress() as bars:
        task = bars.add_task("llm", total=None)
        record = run(
            plan,
            Path(folder),
            lambda name: bars.update(task, description=name),
            threads=threads,
            quality_of=model_directory(quality_of),
            kept=None if models is None else beside(json),
        )
    save_json(json, record)
    show(record)


def on_cuda(json: Path | None, png: Path | None, *, quick: bool, overwrite: bool) -> None:
    """Measure a model on a CUDA device, print and write what was found."""
    from tesseral.bench import cuda_tables as tables
    from tesseral.bench.llm.cuda import FULL, QUICK, run

    check_files(json, png=png, overwrite=overwrite)
    with progress() as bars:
        task = bars.add_task("llm", total=None)
        record = run(QUICK if quick else FULL, lambda name: bars.update(task, description=name))
    save_json(json, record)
    if png is not None:
        save(png, tables.llm_chart(record))
    print_table(
        f"{record['plan']['layers']} blocks on {record['device']}", *tables.llm_times(record)
    )
    print_table("What must hold", *tables.llm_bars(record))


def show(record: dict[str, Any]) -> None:
    """Print a record for people."""
    plan, memory = record["plan"], record["memory"]
    rows = [
        [
            name,
            f"{side['prefill_tokens_per_s']:.1f}",
            f"{side['decode_tokens_per_s']:.2f}",
            f"{1e3 * side['first_token_s']:.0f}",
            f"{side['weight_bytes'] / side['decode']['median_s'] / record['read_bytes_per_s']:.0%}",
            f"{memory[name] / 1e6:.0f}" if memory.get(name) else "",
        ]
        for name, side in record["sides"].items()
    ]
    print_table(
        f"{plan['prompt']} tokens, {record['threads']} threads",
        [
            "side",
            "prefill, tokens/s",
            "decode, tokens/s",
            f"first token of {plan['short']}, ms",
            "of read bandwidth",
            f"MB at {plan['long']}" if plan["long"] else "",
        ],
        rows,
    )
    for name, side in record["sides"].items():
        if min(side["tokens_read"]) < plan["prompt"]:
            typer.echo(
                f"{name}: slow here, so it read {min(side['tokens_read'])} tokens and had random "
                "keys and values of the others; memory is that of its arrays, without products"
            )
    if record["quality"]:
        found = record["quality"]
        typer.echo(
            f"{found['model']}: perplexity {found['perplexity']:.2f}, of the original "
            f"{found['reference_perplexity']:.2f}; same likeliest token {found['top1']:.1%}"
        )
        for name, value in found.get("peers", {}).items():
            typer.echo(f"{found['model']} under {name}: perplexity {value:.2f}")
        typer.echo()
    marks = [
        [
            bar["name"],
            f"{bar['value']:.2f}",
            f"{'<=' if bar['below'] else '>='} {bar['limit']:.2f}",
            "yes" if bar["holds"] else "NO",
        ]
        for bar in record["bars"]
    ]
    print_table("What must hold", ["what", "found", "needed", "holds"], marks)


def _folder(models: Path | None) -> AbstractContextManager[str | Path]:
    if models is None:
        return tempfile.TemporaryDirectory(prefix="tesseral-bench-")
    models.mkdir(parents=True, exist_ok=True)
    return nullcontext(models)
