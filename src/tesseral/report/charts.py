"""Charts as SVG that takes its colours from the page around it, and as PNG in those of paper.

matplotlib draws each role (ink, grid, one series) in a colour of its own that nothing else
uses; these are then replaced by the style variables of ``page.css``, so one picture serves
light and dark pages. Text stays text. A chart is drawn as wide as a phone and scales up.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from types import ModuleType
from typing import Any

from tesseral.runtime.extras import require

_WIDTH = 5.0  # inches of 72 px: what a phone shows at its natural size
ROLES = (
    "ink",
    "muted",
    "grid",
    "full",
    "none",
    "hadamard",
    "flatquant",
    "peer",
    "ours",
    "violet",
    "gold",
)
"""What has a colour; ``--role`` in ``page.css``."""

_CODES = {role: f"#{number:06x}" for number, role in enumerate(ROLES, start=1)}
PAPER = {
    "ink": "#1c1e21",
    "muted": "#5c6370",
    "grid": "#dfe1e5",
    "full": "#7a808c",
    "none": "#c8501e",
    "hadamard": "#2a6fb8",
    "flatquant": "#0b8f6a",
    "peer": "#7a808c",
    "ours": "#0b8f6a",
    "violet": "#7d4fb5",
    "gold": "#a87b00",
}
"""The colours of a light page, for pictures that cannot ask the page."""

KINDS = ("flatquant", "hadamard", "none", "violet", "gold", "full")
"""Roles for things that have a number but no role of their own."""

_PNG_WIDTH, _PNG_DPI = 10.0, 160  # no phone has to show it
_SHORT = 7  # letters of names that fit beside one another under a grid
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tesseral",  # same data, same bytes
    "font.sans-serif": ["DejaVu Sans"],  # widths; the page shows its own font
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
}
_STYLE_COLOURS = {
    "text.color": "ink",
    "axes.labelcolor": "muted",
    "axes.edgecolor": "grid",
    "xtick.color": "muted",
    "ytick.color": "muted",
    "grid.color": "grid",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One horizontal bar.

    Attributes
    ----------
    label, text : str
        What stands before it and after it.
    value : float
        Its length.
    role : str
        Its colour; one of :data:`ROLES`.
    points : sequence of float
        Single measurements whose mean is ``value``, drawn on it as dots.
    """

    label: str
    text: str
    value: float
    role: str
    points: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of work on a timeline.

    Attributes
    ----------
    row, kind : str
        Who works, and on what; each kind has a colour.
    start, end : float
        When.
    """

    row: str
    kind: str
    start: float
    end: float


def require_matplotlib() -> ModuleType:
    """Return matplotlib.

    Raises
    ------
    MissingExtraError
        If it is not installed.
    """
    return require("matplotlib", extra="plot", purpose="drawing charts")


def bars(title: str, rows: Sequence[Bar], *, xlabel: str) -> str:
    """Draw horizontal bars, the first on top."""
    with _style():
        return _svg(_bar_axes(title, rows, xlabel, _CODES))


def bars_png(title: str, rows: Sequence[Bar], *, xlabel: str) -> bytes:
    """Draw what :func:`bars` draws as a PNG image."""
    with _style(PAPER):
        axes, file = _bar_axes(title, rows, xlabel, PAPER, _PNG_WIDTH), BytesIO()
        # without its version the same data give the same bytes
        axes.figure.savefig(file, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return file.getvalue()


def timelines_png(
    panels: Mapping[str, Sequence[Span]], roles: Mapping[str, str], *, xlabel: str
) -> bytes:
    """Draw timelines one below another, by their titles, as a PNG image.

    ``roles`` has the colour of each kind of work, in the order of the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    with _style(PAPER):
        figure = Figure(figsize=(_PNG_WIDTH, 2.0 * len(panels) + 0.6), layout="constrained")
        for number, (title, spans) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(len(panels), 1, number)
            axes.set_title(title, loc="left")
            rows = list(dict.fromkeys(span.row for span in spans))
            for place, row in enumerate(rows):
                mine = [span for span in spans if span.row == row]
                axes.broken_barh(
                    [(span.start, span.end - span.start) for span in mine],
                    (place - 0.38, 0.76),
                    facecolors=[PAPER[roles[span.kind]] for span in mine],
                    edgecolor="white",
                    linewidth=0.3,
                )
            axes.set_yticks(range(len(rows)), rows)
            axes.tick_params(axis="y", length=0, labelcolor=PAPER["ink"])
            axes.invert_yaxis()
            axes.set_xlim(left=0)
        axes.set_xlabel(xlabel)
        keys = [Patch(color=PAPER[role], label=kind) for kind, role in roles.items()]
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return file.getvalue()


def grouped_bars(
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
) -> str:
    """Draw one group of vertical bars for each name in ``groups``; ``series`` is by role."""
    with _style():
        axes = _axes(title, 2.6)
        width = 0.8 / len(series)
        for index, (role, values) in enumerate(series.items()):
            shift = (index - (len(series) - 1) / 2) * width
            places = [place + shift for place in range(len(groups))]
            axes.bar(places, values, width * 0.9, color=_CODES[role])
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(axis="y")
        return _svg(axes)


def curves(title: str, series: Mapping[str, Sequence[float]], *, xlabel: str, ylabel: str) -> str:
    """Draw one line for each role over the positions of its values, from zero upwards."""
    with _style():
        axes = _axes(title, 2.6)
        for role, values in series.items():
            axes.plot(range(1, len(values) + 1), values, color=_CODES[role])
        axes.set_xscale("log")  # the few largest are what matters
        axes.set_xlim(left=1)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid()
        return _svg(axes)


def alone(svg: str) -> str:
    """Return a chart as a file of its own: with a header, in the colours of a light page."""
    for role, colour in PAPER.items():
        svg = svg.replace(f"var(--{role})", colour)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg.replace("<svg ", f"<svg {spaces} ", 1)}'


def lines(
    title: str,
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float] | None = None,
    points: bool = False,
    names: Sequence[str] = (),
) -> str:
    """Draw one line for each role through its x and y values.

    ``marks`` are upright lines, by what is written at their upper end. ``points`` leaves the
    lines out and draws dots. ``names`` stand at x = 0, 1, ... in place of numbers.
    """
    with _style():
        axes = _axes(title, 2.8)
        for role, (xs, ys) in series.items():
            axes.plot(xs, ys, "o" if points else "o-", ms=2.5 if points else 4, color=_CODES[role])
        for words, x in (marks or {}).items():
            axes.axvline(x, color=_CODES["muted"], lw=1, ls="--")
            axes.annotate(
                words,
                (x, 1),
                (3, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                va="top",
                color=_CODES["muted"],
            )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid()
        _name_ticks(axes.xaxis, names, rotation=90)
        return _svg(axes)


def heat_map(
    title: str,
    values: Sequence[Sequence[float]],
    *,
    xlabel: str,
    ylabel: str,
    rows: Sequence[int] = (),
    columns: Sequence[int] = (),
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
) -> str:
    """Draw a matrix as an image, zero in white, with lines before some rows and columns.

    Rows and columns without names have numbers.
    """
    with _style():
        axes = _axes(title, 4.6)
        largest = max((abs(v) for row in values for v in row), default=0.0) or 1.0
        signed = any(v < 0 for row in values for v in row)
        image = axes.imshow(
            values,
            cmap="RdBu" if signed else "Blues",
            vmin=-largest if signed else 0,
            vmax=largest,
            interpolation="nearest",
            aspect="auto",
        )
        for place in rows:
            axes.axhline(place - 0.5, color=_CODES["none"], lw=0.8)
        for place in columns:
            axes.axvline(place - 0.5, color=_CODES["none"], lw=0.8)
        axes.figure.colorbar(image, shrink=0.7)
        axes.locator_params(integer=True)  # there is no cluster or node one half
        _name_ticks(axes.xaxis, column_names, rotation=90)
        _name_ticks(axes.yaxis, row_names)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return _svg(axes)


def _name_ticks(axis: Any, names: Sequence[str], **given: Any) -> None:
    """Write names beside an axis at 0, 1, ..., as large as they fit, or leave its numbers."""
    if names:
        axis.set_ticks(range(len(names)), names, fontsize=min(9.5, 220 / len(names)), **given)
        axis.set_tick_params(length=0)


def tiles(
    title: str,
    roles: Sequence[Sequence[str | None]],
    *,
    xlabel: str,
    ylabel: str,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    texts: Sequence[Sequence[str]] = (),
    numbered: bool = True,
) -> str:
    """Draw a grid of coloured squares, the first row on top; ``None`` leaves one empty.

    ``rows`` and ``columns`` are what stands beside them; by default numbers, unless they are not
    wanted. ``texts`` are written into the squares, which are then paler.
    """
    from matplotlib.patches import Rectangle

    n_rows, n_columns = len(roles), len(roles[0])
    with _style():
        axes = _axes(title, min(4.6, max(1.4, 0.9 + 4.0 * n_rows / n_columns)))
        for place, role in _places(roles):
            if role is not None:
                pale = 0.3 if texts else 1.0
                square = Rectangle(place, 0.93, 0.93, facecolor=_CODES[role], alpha=pale, lw=0)
                axes.add_patch(square)
        for (x, y), words in _places(texts):
            axes.text(x + 0.47, y + 0.5, words, ha="center", va="center", color=_CODES["ink"])
        axes.set_xlim(0, n_columns)
        axes.set_ylim(n_rows, 0)
        for axis, count, names in ((axes.xaxis, n_columns, columns), (axes.yaxis, n_rows, rows)):
            words = list(names) or [str(number + 1) for number in range(count if numbered else 0)]
            axis.set_ticks([number + 0.47 for number in range(len(words))], words)
        if any(len(name) > _SHORT for name in columns):
            axes.tick_params(axis="x", rotation=35)
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        return _svg(axes)


def _places(values: Sequence[Sequence[Any]]) -> Iterator[tuple[tuple[int, int], Any]]:
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            yield (x, y), value


def intervals(
    title: str, rows: Sequence[tuple[str, float, float, float, str]], *, xlabel: str
) -> str:
    """Draw estimates with their intervals, the first on top.

    Each row is a label, the estimate, the interval's ends, and a role.
    """
    with _style():
        axes = _axes(title, 0.9 + 0.26 * len(rows))
        for place, (_, value, low, high, role) in enumerate(rows):
            axes.plot([low, high], [place, place], color=_CODES[role], lw=2.2)
            axes.plot([value], [place], "o", ms=4.5, color=_CODES[role])
        axes.axvline(0, color=_CODES["muted"], lw=0.8)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=_CODES["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(xlabel)
        axes.grid(axis="x")
        return _svg(axes)


def _style(colours: Mapping[str, str] = _CODES) -> AbstractContextManager[Any]:
    """Return the context in which charts are made and written."""
    style = _STYLE | {name: colours[role] for name, role in _STYLE_COLOURS.items()}
    context: AbstractContextManager[Any] = require_matplotlib().rc_context(style)
    return context


def _bar_axes(
    title: str,
    rows: Sequence[Bar],
    xlabel: str,
    colours: Mapping[str, str],
    width: float = _WIDTH,
) -> Any:
    axes = _axes(title, 0.9 + 0.34 * len(rows), width)
    places = range(len(rows))
    axes.barh(places, [r.value for r in rows], 0.62, color=[colours[r.role] for r in rows])
    for place, row in zip(places, rows, strict=True):
        end = max((row.value, *row.points))
        axes.annotate(row.text, (end, place), (6, 0), textcoords="offset points", va="center")
        marks = [place] * len(row.points)
        axes.plot(row.points, marks, "o", ms=4, mfc="none", mec=colours["ink"], mew=1)
    axes.set_yticks(places, [r.label for r in rows])
    axes.tick_params(axis="y", length=0, labelcolor=colours["ink"])
    axes.invert_yaxis()
    axes.margins(x=0.28)
    axes.set_xlim(left=0)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x")
    return axes


def _axes(title: str, height: float, width: float = _WIDTH) -> Any:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height), layout="constrained").add_subplot()
    axes.set_title(title, loc="left")
    return axes


def _svg(axes: Any) -> str:
    """Return the chart for use inside a page: no header, no names, no colours of its own."""
    file, nothing = StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    axes.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    label = escape(axes.get_title(loc="left"))
    svg = file.getvalue()
    for pattern, replacement in (
        (
            r"^.*?<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>",
            rf'<svg role="img" aria-label="{label}" \1>',
        ),
        (r"<style.*?</style>", ""),  # it would style the whole page; page.css says the same
        (r'<g id="[^"]*"', "<g"),  # the same ids in every chart
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.DOTALL)
    for role, code in _CODES.items():
        svg = svg.replace(code, f"var(--{role})")
    return svg
