"""``tesseral demo``: the main job on what the package ships, with a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesseral.cli.console import print_json, print_table, progress
from tesseral.cli.inputs import Overwrite, require_llm

if TYPE_CHECKING:
    from tesseral.report.demo.record import DemoRecord
    from tesseral.report.demo.run import DemoStep


def demo(
    out: Annotated[Path, typer.Option(help="Directory to write.")] = Path("demo"),
    overwrite: Overwrite = False,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many seeds, counted up from the first.")] = 1,
    samples: Annotated[
        int, typer.Option(help="Calibration sequences; more take longer and lose less.")
    ] = 64,
    json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Run all four systems on what is shipped, and write a report.

    A language model is quantised in three ways and measured; attention and 4-bit layers are timed
    beside torch's; a legislature is clustered and relations among nations are explained.

    Example: tesseral demo --seeds 3 --overwrite
    """
    require_llm("demo")
    from tesseral.report.demo.plan import embedded_plan
    from tesseral.report.demo.run import run_demo

    plan = embedded_plan(seed, seeds, samples)
    with progress() as bars:
        record = run_demo(plan, out, overwrite=overwrite, watch=StageBars(bars).show)
    if json:
        print_json({"report": str(out / "report.html"), **record.as_dict()})
    else:
        _show(record, out)


class StageBars:
    """A line for each stage, and a progress bar for the one that runs.

    Parameters
    ----------
    bars : rich.progress.Progress
        Where to draw; where it draws nothing the lines still tell how far things are.
    """

    def __init__(self, bars: Any) -> None:
        self._bars, self._task, self._stage = bars, bars.add_task(""), -1

    def show(self, step: "DemoStep") -> None:
        """Show one step."""
        if step.stage != self._stage:
            self._stage = step.stage
            line = f"{step.stage + 1} of {step.n_stages}: {step.name}"
            self._bars.console.print(line, highlight=False)
            self._bars.reset(self._task, description=step.name, total=None)
        self._bars.update(self._task, completed=step.done, total=step.total or None)


def _show(record: "DemoRecord", out: Path) -> None:
    from tesseral.report.demo.record import accuracy_table, size_table

    print_table("How well it still predicts", *accuracy_table(record))
    print_table("How much room it takes", *size_table(record))
    verdict = "yes" if record.ordered else "no"
    typer.echo(f"FlatQuant better than Hadamard better than rounding, every seed: {verdict}")
    typer.echo(f"wrote {out / 'report.html'}")
