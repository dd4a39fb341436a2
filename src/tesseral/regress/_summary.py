"""A fit on one page, as statisticians are used to reading it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tesseral._errors import InformationError
from tesseral.regress._information import host

if TYPE_CHECKING:
    from tesseral.regress._tucker_response import TensorResponseRegressor

_WIDTH = 78
_LEAST_P = 1e-99


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What there is to say about a fit; ``str`` lays it out.

    Attributes
    ----------
    facts : dict
        Of the whole fit.
    effects : dict
        For each mode with covariates, one record for each: a Wald test that it has no effect.
    coefficients : list of dict
        The coefficients of largest z, with standard errors and 95% intervals.
    note : str
        What could not be found, and why; empty if nothing is missing.
    """

    facts: dict[str, Any]
    effects: dict[str, list[dict[str, Any]]]
    coefficients: list[dict[str, Any]]
    note: str = ""

    def __str__(self) -> str:
        lines = ["Tensor-response regression".center(_WIDTH), "=" * _WIDTH]
        lines += _two_columns(self.facts)
        for mode, records in self.effects.items():
            lines += ["=" * _WIDTH, f"Covariates of {mode}: Wald tests that all coefficients are 0"]
            lines += _table(records, ["covariate", "chi2", "df", "P>chi2", "adjusted"])
        if self.coefficients:
            lines += ["=" * _WIDTH, "Coefficients of largest |z|"]
            columns = ["coefficient", "coef", "std err", "z", "P>|z|", "[0.025", "0.975]"]
            lines += _table(self.coefficients, columns)
        lines.append("=" * _WIDTH)
        if self.note:
            lines.append(f"Note: {self.note}")
        return "\n".join(lines)


def summarise(
    model: "TensorResponseRegressor", *, information: str, correction: str, n_coefficients: int
) -> Summary:
    """Collect what there is to say about a fit."""
    note, effects, coefficients = "", {}, []
    try:
        effects = _effects(model, information, correction)
        coefficients = _coefficients(model, information, n_coefficients)
    except InformationError as error:
        note = str(error).partition(": ")[2]
    return Summary(facts=_facts(model), effects=effects, coefficients=coefficients, note=note)


def _facts(model: "TensorResponseRegressor") -> dict[str, Any]:
    family = model._setup.problem.family
    shape = " x ".join(map(str, model._setup.problem.shape))
    return {
        "Response": shape,
        "Family": family.name,
        "Link": family.link,
        "Rank": " x ".join(map(str, model.rank_)),
        "Observations": f"{model.n_entries_:g}",
        "Parameters": str(model.dof_),
        "Log-likelihood": f"{model.log_likelihood_:.4f}",
        "BIC": f"{model.bic_:.4f}",
        "Dispersion": f"{model.dispersion_:.6g}",
        "Rounds": str(model.n_iter_),
        "Converged": "yes" if model.converged_ else "no",
        "Separated": "no" if model.separation_ is None else "yes",
    }


def _effects(
    model: "TensorResponseRegressor", information: str, correction: str
) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for mode, covariates in enumerate(model._setup.covariates):
        if covariates.matrix is None:
            continue
        tests = model.wald_tests(mode, information=information, correction=correction)
        found[model.dims_[mode]] = [
            {
                "covariate": name,
                "chi2": float(tests.statistic[number]),
                "df": tests.df,
                "P>chi2": float(tests.p_value[number]),
                "adjusted": float(tests.adjusted[number]),
            }
            for number, name in enumerate(tests.names)
        ]
    return found


def _coefficients(
    model: "TensorResponseRegressor", information: str, count: int
) -> list[dict[str, Any]]:
    coef = host(model.coef_)
    errors = model.standard_errors(information=information)
    tests = model.coef_tests(information=information, correction="none")
    bounds = model.coef_interval(information=information)
    z = coef / errors
    records = []
    for flat in np.argsort(-np.abs(z), axis=None)[:count]:
        index = tuple(int(i) for i in np.unravel_index(flat, coef.shape))
        name = ", ".join(names[i] for names, i in zip(model.covariate_names_, index, strict=True))
        records.append(
            {
                "coefficient": name,
                "coef": float(coef[index]),
                "std err": float(errors[index]),
                "z": float(z[index]),
                "P>|z|": float(tests.p_value[index]),
                "[0.025": float(bounds.low[index]),
                "0.975]": float(bounds.high[index]),
            }
        )
    return records


def _two_columns(facts: dict[str, Any]) -> list[str]:
    items = [f"{name + ':':<18}{value:>19}" for name, value in facts.items()]
    half = -(-len(items) // 2)
    right = [*items[half:], ""]
    return [f"{a:<40} {b}".rstrip() for a, b in zip(items[:half], right, strict=False)]


def _table(records: list[dict[str, Any]], columns: list[str]) -> list[str]:
    first = columns[0]
    width = _WIDTH - 10 * (len(columns) - 1)
    head = f"{first:<{width}}" + "".join(f"{column:>10}" for column in columns[1:])
    lines = [head, "-" * _WIDTH]
    for record in records:
        name = str(record[first])
        shown = name if len(name) < width else name[: width - 4] + "..."
        cells = "".join(f"{_cell(column, record[column]):>10}" for column in columns[1:])
        lines.append(f"{shown:<{width}}{cells}")
    return lines


def _cell(column: str, value: Any) -> str:
    """Return a number in fewer characters than a column has."""
    if isinstance(value, int):
        return str(value)
    if value < _LEAST_P and (column.startswith("P>") or column == "adjusted"):
        return f"<{_LEAST_P:.0e}"
    texts = (f"{value:.{digits}g}" for digits in (4, 3, 2, 1))
    return next(text for text in texts if len(text) < 10)
