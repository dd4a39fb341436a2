"""A page on one quantised model beside its original: what it predicts, its size, its flatness."""

from collections.abc import Sequence
from statistics import fmean

from tesseral.llm.flatness import SiteFlatness
from tesseral.report import charts, page

_NAMES = {"full": "original", "flatquant": "quantised"}


def evaluation_page(
    title: str,
    measured: tuple[list[str], list[list[str]]],
    quantised: Sequence[SiteFlatness],
    original: Sequence[SiteFlatness],
    block_errors: Sequence[float],
) -> str:
    """Return the page as a complete HTML document.

    Parameters
    ----------
    title : str
        Heading.
    measured : pair of lists
        Columns and rows of the table of numbers.
    quantised, original : sequences of SiteFlatness
        Inputs of linear layers in both models, in the same order.
    block_errors : sequence of float
        What each block gets wrong by itself.
    """
    both = {"full": original, "flatquant": quantised}
    middle = original[len(original) // 2].block
    return page.page(
        title,
        [
            page.section("Measured", [page.table("On the text given.", *measured)]),
            page.section(
                "Flatness",
                [
                    page.paragraph(
                        "A few channels much larger than the rest stretch the levels of a row, and "
                        "the rest is rounded away. A flat line at 1 wastes none."
                    ),
                    page.key(_NAMES),
                    page.grid(_panels(both, middle)),
                    page.grid([_rounding_errors(both), _block_errors(block_errors)]),
                ],
            ),
        ],
    )


def _panels(both: dict[str, Sequence[SiteFlatness]], block: int) -> list[str]:
    panels = []
    pairs = zip(*both.values(), strict=True)
    for found in (dict(zip(both, pair, strict=True)) for pair in pairs):
        site = found["full"]
        if site.block != block:
            continue
        for what in ("activation", "weight"):
            series = {
                role: sorted(map(float, getattr(s, what)), reverse=True)
                for role, s in found.items()
            }
            chart = charts.curves(
                f"{site.site}, {what}s",
                series,
                xlabel="channels, largest first",
                ylabel="relative magnitude",
            )
            panels.append(page.figure(chart, f"Block {block + 1}."))
    return panels


def _rounding_errors(both: dict[str, Sequence[SiteFlatness]]) -> str:
    blocks = sorted({site.block for site in both["full"]})
    series = {
        role: [fmean(s.rounding_error for s in sites if s.block == block) for block in blocks]
        for role, sites in both.items()
    }
    chart = charts.grouped_bars(
        "Error of rounding activations",
        [str(block + 1) for block in blocks],
        series,
        xlabel="block",
        ylabel="relative squared error",
    )
    return page.figure(chart, "Each token's input rounded to 4 bits over its whole range.")


def _block_errors(errors: Sequence[float]) -> str:
    chart = charts.grouped_bars(
        "Error of each block's output",
        [str(number) for number in range(1, len(errors) + 1)],
        {"flatquant": errors},
        xlabel="block",
        ylabel="relative squared error",
    )
    return page.figure(chart, "A quantised block's output when its input is right.")
