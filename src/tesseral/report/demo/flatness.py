"""The part of the report that shows why transforms help."""

from collections.abc import Sequence
from statistics import fmean

from tesseral.quantization.placement import INPUT_SITES
from tesseral.report import charts, page
from tesseral.report.demo.plan import NAMES, TRANSFORMED
from tesseral.report.demo.record import DemoRecord, ModelRecord

_DRAWN = {
    "attention_input": "Input of query, key and value",
    "mlp_hidden": "Input of the down projection",
}
"""Inputs whose channels are drawn, in words."""

_ERROR_AXES = {"xlabel": "block", "ylabel": "relative squared error"}


def flatness_section(record: DemoRecord) -> str:
    """Return how flat activations and weights are, and what each block gets wrong."""
    shown = {method: record.of(method)[0] for method in ("full", *TRANSFORMED)}
    middle = (shown["full"].sites[-1].block + 1) // 2
    return page.section(
        "Why it works: flatness",
        [
            page.paragraph(
                "Four bits have sixteen levels for a whole row. If a few channels are much "
                "larger than the rest, they stretch the levels and the rest is rounded away. A "
                "transform that makes all channels about equally large, a flat line at 1, wastes "
                "none."
            ),
            page.key({method: NAMES[method] for method in shown}),
            page.grid(_panels(shown, middle)),
            page.paragraph(
                "Magnitude: root mean square of a channel, relative to that of all channels. "
                "Activations on the test text, before they are rounded; weights of quantised "
                "models as they are stored.",
                "note",
            ),
            page.key(NAMES),
            page.grid([_rounding_errors(shown), _block_errors(record)]),
        ],
    )


def _panels(shown: dict[str, ModelRecord], block: int) -> list[str]:
    """Return the channel magnitudes of one block: each input, then the weights that read it."""
    panels = []
    for site, title in _DRAWN.items():
        found = {
            method: next(s for s in model.sites if (s.block, s.site) == (block, site))
            for method, model in shown.items()
        }
        for what, heading in (("activation", title), ("weight", "Weights that read it")):
            chart = charts.curves(
                heading,
                {m: sorted(getattr(s, what), reverse=True) for m, s in found.items()},
                xlabel="channels, largest first",
                ylabel="relative magnitude",
            )
            panels.append(page.figure(chart, f"Block {block + 1}, {site}, {what}s."))
    return panels


def _rounding_errors(shown: dict[str, ModelRecord]) -> str:
    errors = {
        method: [
            fmean(of_block)
            for of_block in zip(*(m.rounding_errors(s.name) for s in INPUT_SITES), strict=True)
        ]
        for method, m in shown.items()
    }
    return page.figure(
        charts.grouped_bars(
            "Error of rounding activations", _blocks(errors["full"]), errors, **_ERROR_AXES
        ),
        "Squared error of rounding each token's input to 4 bits over its whole range, relative to "
        "its square; mean over the four inputs of linear layers. Flatness alone, without learned "
        "clipping.",
    )


def _block_errors(record: DemoRecord) -> str:
    errors = {m: record.of(m)[0].block_errors for m in ("none", *TRANSFORMED)}
    return page.figure(
        charts.grouped_bars(
            "Error of each block's output", _blocks(errors["none"]), errors, **_ERROR_AXES
        ),
        "Squared error of a quantised block's output when its input is right, relative to the "
        "output's square. Weights, activations and cache are all rounded.",
    )


def _blocks(values: Sequence[float]) -> list[str]:
    return [str(number) for number in range(1, len(values) + 1)]
