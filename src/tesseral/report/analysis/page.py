"""The page on a language model looked at as tensors."""

from itertools import product
from typing import Any

import numpy as np

from tesseral.llm.analysis import Analysis
from tesseral.llm.analysis.errors import TRANSFORMS
from tesseral.report import charts, page
from tesseral.report.analysis.tables import effects_table, groups_table, shifts_table
from tesseral.report.units import machine_rows

_WIDTH_ROLES = {2: "none", 3: "gold", 4: "flatquant", 5: "hadamard", 6: "violet"}
_WIDEST_ROLE = "full"
_SHOWN_BITS = 4
_PARTS = {"weight": "weights", "activation": "inputs"}


def analysis_page(found: Analysis, machine: dict[str, Any]) -> str:
    """Return the page as a complete HTML document."""
    advice = found.advice
    return page.page(
        f"{found.model}, looked at as tensors",
        [
            page.paragraph(
                f"{found.n_sequences} sequences of {found.sequence_length} tokens went through "
                "the model and back. What its heads look at and what rounding each of its layers "
                "costs are two tensors; the first was clustered, the second explained, and "
                "widths follow from both.",
                "lead",
            ),
            page.facts(
                [
                    (str(found.groups.labels.size), "attention heads"),
                    (str(len(found.groups.names)), "groups of heads"),
                    (f"{found.effects.explained:.0%}", "of the variance of errors explained"),
                    (
                        f"{advice.uniform_loss / max(advice.loss, 1e-12):.2f} x",
                        "less loss expected of the advised widths than of equal ones at "
                        f"{advice.weight_bits:.2f} and {advice.activation_bits:.2f} bits",
                    ),
                ]
            ),
            _heads(found),
            _errors(found),
            _effects(found),
            _advice(found),
            page.section("Machine", [page.table("", ["what", "value"], machine_rows(machine))]),
        ],
    )


def _heads(found: Analysis) -> str:
    labels = found.groups.labels
    roles = [[_role(label) for label in row] for row in labels]
    chart = charts.tiles("Groups of heads", roles, xlabel="head", ylabel="block")
    names = {
        _role(k): f"{k + 1}: {name}" for k, name in reversed(list(enumerate(found.groups.names)))
    }
    return page.section(
        "Heads that are alike",
        [
            page.paragraph(
                "For every head and every kind of token that asks: how spread its attention is, "
                "and how much goes to the first token, to the token itself, to its neighbours, "
                "and to each kind of token. Heads with one profile, whatever its size, are one "
                "cluster of a degree-corrected tensor block model."
            ),
            page.key(dict(reversed(list(names.items())))),
            page.grid(
                [
                    page.figure(chart, "One square for each head."),
                    *_criterion(found.groups.bic_path),
                ]
            ),
            page.table("Means over the heads of a group.", *groups_table(found)),
        ],
    )


def _criterion(path: dict[int, float]) -> list[str]:
    """Return how the number of groups was chosen, if it was."""
    if not path:
        return []
    counts = sorted(path)
    chart = charts.lines(
        "Bayesian information criterion",
        {"ours": ([float(k) for k in counts], [path[k] for k in counts])},
        xlabel="groups of heads",
        ylabel="BIC",
    )
    return [page.figure(chart, "The smallest was chosen.")]


def _role(label: int) -> str:
    return charts.KINDS[int(label) % len(charts.KINDS)]


def _errors(found: Analysis) -> str:
    errors = found.errors
    figures = []
    for part, transform in product(("activation", "weight"), TRANSFORMS):
        shown = [
            k
            for k, s in enumerate(errors.settings)
            if (s.transform, s.part) == (transform, part)
            and s.bits == _nearest([s.bits for s in errors.settings])
        ]
        values = np.log10(np.maximum(errors.error[:, :, shown[0]], 1e-12))
        title = f"Error, {_PARTS[part]} to {errors.settings[shown[0]].bits} bits"
        title += "" if transform == "none" else ", Hadamard"
        figures.append(page.figure(_error_map(title, values, errors.projections), "Its log10."))
    return page.section(
        "What rounding costs each layer",
        [
            page.paragraph(
                "Each linear layer was rounded alone: the squared error of its output relative "
                "to the output's square. A quarter of each picture has one colour: blue lost "
                "least, then green and gold, and orange most."
            ),
            page.grid(figures),
        ],
    )


def _nearest(widths: list[int]) -> int:
    return min(set(widths), key=lambda bits: (abs(bits - _SHOWN_BITS), bits))


def _error_map(title: str, values: Any, projections: tuple[str, ...]) -> str:
    texts = [["" if np.isnan(v) else f"{v:.1f}" for v in row] for row in values]
    edges = np.nanquantile(values, [0.25, 0.5, 0.75])
    order = ("hadamard", "flatquant", "gold", "none")
    roles = [
        [None if np.isnan(v) else order[int(np.searchsorted(edges, v))] for v in row]
        for row in values
    ]
    return charts.tiles(
        title,
        roles,
        xlabel="",
        ylabel="block",
        columns=[_short(p) for p in projections],
        texts=texts,
    )


def _short(projection: str) -> str:
    return projection.removesuffix("_proj")


def _effects(found: Analysis) -> str:
    effects = found.effects
    bits = [k for k, name in enumerate(effects.setting) if name.endswith("a bit more")]
    rows = [
        (
            f"{_short(projection)}, {effects.setting[k].split(',')[0]}",
            float(effects.coef[0, p, k]),
            float(effects.low[0, p, k]),
            float(effects.high[0, p, k]),
            charts.KINDS[number],
        )
        for number, k in enumerate(bits)
        for p, projection in enumerate(effects.projections)
    ]
    level = f"{effects.level:.0%}"
    first = effects.setting.index(f"activations to {_SHOWN_BITS} bits")
    parts = [
        page.paragraph(
            "A tensor regression of log2(error) on the block (depth, outliers of its inputs) and "
            "on the setting (what is rounded, bits, Hadamard), with coefficients of their own for "
            f"each projection, of rank {' x '.join(map(str, effects.rank))} (by BIC). Theory says "
            "-2 for a bit: a quarter of the squared error."
        ),
        page.figure(
            charts.intervals("One bit more", rows, xlabel="change of log2(error)"),
            f"Estimates with {level} confidence intervals.",
        ),
        page.table(
            f"Coefficients at the middle of the model, with {level} intervals.",
            *effects_table(effects),
        ),
    ]
    if len(effects.layer) > 1:
        parts.append(
            page.table(
                "How the error of rounding inputs shifts: from the first block to the last, and "
                "for each doubling of how far the largest entries stand out.",
                *shifts_table(effects, first),
            )
        )
    return page.section("What explains the errors", parts)


def _advice(found: Analysis) -> str:
    advice, names = found.advice, found.errors.projections
    figures = []
    for part, words in _PARTS.items():
        widths = [
            [advice.layers.get(f"{b}.{name}", {}).get(f"{part}_bits") for name in names]
            for b in range(advice.n_blocks)
        ]
        figures.append(
            page.figure(
                charts.tiles(
                    f"Bits of {words}",
                    [
                        [None if w is None else _WIDTH_ROLES.get(w, _WIDEST_ROLE) for w in row]
                        for row in widths
                    ],
                    xlabel="",
                    ylabel="block",
                    columns=[_short(name) for name in names],
                    texts=[["" if w is None else str(w) for w in row] for row in widths],
                ),
                f"On average {getattr(advice, f'{part}_bits'):.3f} bits.",
            )
        )
    return page.section(
        "Advised widths",
        [
            page.paragraph(
                "The widths with the least expected loss at these averages: the exact solution of "
                "a knapsack problem over what each error costs the model's predictions, after "
                f"transform {advice.transform}. Expected to add {advice.loss:.4f} nats a token; "
                f"the same widths everywhere {advice.uniform_loss:.4f}."
            ),
            page.grid(figures),
            page.paragraph("tesseral quantize MODEL OUT --advice advice.json uses them.", "note"),
        ],
    )
