"""The tables of an analysis, for pages and terminals alike."""

import numpy as np

from tesseral.llm.analysis import Analysis, Effects

Table = tuple[list[str], list[list[str]]]


def groups_table(found: Analysis) -> Table:
    """Return the groups of heads: how many, and what they look at."""
    groups = found.groups
    columns = ["group", "heads", "stands out by", *found.heads.statistics]
    sizes = np.bincount(groups.labels.ravel(), minlength=len(groups.names))
    rows = [
        [str(k + 1), str(size), name, *(f"{value:.2f}" for value in mean)]
        for k, (size, name, mean) in enumerate(zip(sizes, groups.names, groups.means, strict=True))
    ]
    return columns, rows


def effects_table(effects: Effects) -> Table:
    """Return what each setting does to each projection, with intervals."""
    rows = []
    for p, projection in enumerate(effects.projections):
        cells = [_cell(effects, (0, p, s)) for s in range(len(effects.setting))]
        rows.append([projection, *cells])
    return ["projection", *effects.setting], rows


def shifts_table(effects: Effects, setting: int) -> Table:
    """Return how depth and outliers of a layer shift the errors of one setting."""
    rows = [
        [projection, *(_cell(effects, (k, p, setting)) for k in range(1, len(effects.layer)))]
        for p, projection in enumerate(effects.projections)
    ]
    return ["projection", *effects.layer[1:]], rows


def advice_table(found: Analysis) -> Table:
    """Return the advised widths: weights and inputs of every layer, block by block."""
    names = found.errors.projections
    rows = []
    for block in range(found.advice.n_blocks):
        widths = [found.advice.layers.get(f"{block}.{name}") for name in names]
        rows.append([str(block + 1), *(_widths(w) for w in widths)])
    return ["block", *names], rows


def _widths(widths: object) -> str:
    if not isinstance(widths, dict):
        return ""
    return f"W{widths['weight_bits']}A{widths['activation_bits']}"


def _cell(effects: Effects, place: tuple[int, int, int]) -> str:
    low, high = effects.low[place], effects.high[place]
    return f"{effects.coef[place]:.2f} [{low:.2f}, {high:.2f}]"
