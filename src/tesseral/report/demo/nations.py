"""The part of the report that regresses relations among nations."""

from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from tesseral.datasets import load_nations
from tesseral.regress import TensorResponseRegressor, group_rows
from tesseral.report import charts, page
from tesseral.report.units import seconds_text

RANK = (4, 4, 4)
BOUND = 10.0
GROUPS = 6
ANCHORS = {
    "militaryactions": "Military and hostile acts",
    "exports": "Economic",
    "timesinceally": "Alliance and diplomacy",
    "intergovorgs": "Organisations",
}
"""A relation, and what a group is called that it is in."""

PICTURED = ("militaryactions", "exports")


@dataclass(frozen=True, slots=True, kw_only=True)
class NationsFit:
    """What was found in the relations among nations.

    Attributes
    ----------
    log_likelihood, bic : float
    n_entries : float
        Entries that were recorded; the others are left out.
    groups : tuple of (str, tuple of str)
        What a group of relations is called, and its relations.
    effects : tuple of (str, float, float)
        Covariate, and p-values that it has no effect as the sender's and as the receiver's.
    drawn, effects_drawn : dict of str to str
        Pictures, by relation: of fitted means, and of coefficients.
    elapsed_s : float
    """

    log_likelihood: float
    bic: float
    n_entries: float
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    effects: tuple[tuple[str, float, float], ...]
    drawn: dict[str, str]
    effects_drawn: dict[str, str]
    elapsed_s: float

    @property
    def n_clear(self) -> int:
        """How many covariates have an effect on either side, at 0.01."""
        return sum(min(p) < 0.01 for _, *p in self.effects)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values."""
        return {
            "rank": list(RANK),
            "max_theta": BOUND,
            "log_likelihood": self.log_likelihood,
            "bic": self.bic,
            "n_entries": self.n_entries,
            "groups": {name: list(members) for name, members in self.groups},
            "effects": {name: {"sender": a, "receiver": b} for name, a, b in self.effects},
            "elapsed_s": self.elapsed_s,
        }


def regress_nations(seed: int = 0) -> NationsFit:
    """Regress 56 relations on six attributes of the nations that stand in them."""
    started = monotonic()
    nations = load_nations()
    model = TensorResponseRegressor(
        rank=RANK, family="binomial", constraint="barrier", max_theta=BOUND, random_state=seed
    ).fit(nations.tensor, [nations.covariates, nations.covariates, None])
    labels = group_rows(model, 2, GROUPS, random_state=seed)
    relations = [str(relation) for relation in nations.relation]
    groups = tuple(_group(relations, labels, group) for group in range(GROUPS))
    # expected information: many relations are almost constant, which the observed one does not bear
    tests = [model.wald_tests(mode, information="expected") for mode in (0, 1)]
    effects = tuple(
        (str(name), float(tests[0].adjusted[k]), float(tests[1].adjusted[k]))
        for k, name in enumerate(nations.covariate)
    )
    mean = np.asarray(model.predict())
    return NationsFit(
        log_likelihood=model.log_likelihood_,
        bic=model.bic_,
        n_entries=model.n_entries_,
        groups=groups,
        effects=effects,
        drawn={name: _picture(mean, relations, labels, name, nations.country) for name in PICTURED},
        effects_drawn={
            name: _effects(model, relations.index(name), name, [n for n, *_ in effects])
            for name in PICTURED
        },
        elapsed_s=monotonic() - started,
    )


def nations_section(found: NationsFit) -> str:
    """Return which relations go together, and which attributes they depend on."""
    return page.section(
        "Regression: relations among nations",
        [
            page.paragraph(
                "Which of 56 relations held from each of 14 countries to each other is a tensor of "
                "14 x 14 x 56, with entries missing. It was regressed on six attributes of sender "
                f"and receiver, at rank {' x '.join(map(str, RANK))}, in "
                f"{seconds_text(found.elapsed_s)}. Relations that depend on the attributes in the "
                "same way make a group."
            ),
            page.table(
                "Relations, grouped by the direction of their coefficients.",
                ["group", "relations"],
                [[name, ", ".join(members)] for name, members in found.groups],
            ),
            page.grid(
                page.figure(svg, "Mean probability of the group's relations, as fitted.")
                for svg in found.drawn.values()
            ),
            page.grid(
                page.figure(
                    svg,
                    "Coefficients of pairs of attributes, of the sender and of the receiver. Blue "
                    "makes the relation likelier, orange less likely; no colour where the 95% "
                    "interval holds 0.",
                )
                for svg in found.effects_drawn.values()
            ),
            page.table(
                "Wald tests that an attribute has no effect: p-values, adjusted (Holm).",
                ["attribute", "of the sender", "of the receiver"],
                [[name, f"{a:.1e}", f"{b:.1e}"] for name, a, b in found.effects],
            ),
        ],
        anchor="nations",
    )


def _group(relations: list[str], labels: Any, group: int) -> tuple[str, tuple[str, ...]]:
    members = tuple(name for name, label in zip(relations, labels, strict=True) if label == group)
    names = [title for anchor, title in ANCHORS.items() if anchor in members]
    return " and ".join(names) or f"{members[0]} and others", members


def _picture(mean: Any, relations: list[str], labels: Any, anchor: str, countries: Any) -> str:
    """Draw who relates to whom, on average over the group of a relation."""
    names = [str(country) for country in countries]
    inside = labels == labels[relations.index(anchor)]
    return charts.heat_map(
        ANCHORS[anchor],
        mean[:, :, inside].mean(axis=2).tolist(),
        xlabel="receiver",
        ylabel="sender",
        row_names=names,
        column_names=names,
    )


def _effects(model: Any, relation: int, name: str, attributes: list[str]) -> str:
    """Draw the coefficients of one relation, those that differ from zero in colour."""
    interval = model.coef_interval(0.95, information="expected")
    coef = np.asarray(model.coef_)[:, :, relation]
    low, high = interval.low[:, :, relation], interval.high[:, :, relation]
    clear = (low > 0) | (high < 0)
    colour = np.where(coef > 0, "hadamard", "none")
    return charts.tiles(
        f"Effects on {name}",
        [
            [str(c) if ok else None for c, ok in zip(*row, strict=True)]
            for row in zip(colour, clear, strict=True)
        ],
        xlabel="receiver",
        ylabel="sender",
        rows=attributes,
        columns=attributes,
        texts=[[f"{value:.1f}" for value in row] for row in coef],
    )
