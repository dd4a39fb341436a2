"""``tesseral regress``: explain a tensor by covariates of its modes."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from tesseral._errors import DataError, InformationError, ParameterError
from tesseral.cli.arrays import entry, read_arrays
from tesseral.cli.console import print_json, print_table, progress
from tesseral.cli.inputs import Overwrite
from tesseral.runtime.extras import require
from tesseral.runtime.files import atomic_directory, check_output

if TYPE_CHECKING:
    from tesseral.regress import TensorResponseRegressor

NATIONS = "nations"

_PICTURED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A response with what goes with it.

    Attributes
    ----------
    tensor : array
    covariates : list of (array or None)
    names : list of (tuple of str, or None)
        Of the covariates of each mode.
    rows : list of (tuple of str, or None)
        Of the indices of each mode.
    dims : tuple of str
    """

    tensor: Any
    covariates: list[Any]
    names: list[tuple[str, ...] | None]
    rows: list[tuple[str, ...] | None]
    dims: tuple[str, ...]


def regress(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=f"A .npy, .npz, .rda or .rds file, or the word {NATIONS} for the data in the "
            "package. NaN stands for a missing entry.",
            show_default=False,
        ),
    ],
    tensor: Annotated[
        str | None,
        typer.Option(help="Name of the response in an .npz or R file.", show_default="tensor"),
    ] = None,
    covariates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE=SOURCE",
            help="Covariates of a mode, the first being 0: a .csv file with a header, a .npy file, "
            "or a name in DATA. May be repeated.",
            show_default="none; nations has its own",
        ),
    ] = None,
    formula: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODE=FORMULA",
            help="What a mode's .csv file, or arrays in DATA, are turned into, as '2=~ sex + age'. "
            "May be repeated.",
            show_default="all columns as they are",
        ),
    ] = None,
    rank: Annotated[
        str, typer.Option(help="One number, one for each mode (3,3,2), or bic or cv to search.")
    ] = "bic",
    family: Annotated[
        str,
        typer.Option(
            help="normal, binomial, poisson, negative_binomial or gamma.",
            show_default="normal; nations is binomial",
        ),
    ] = "",
    symmetric: Annotated[
        str, typer.Option(metavar="MODES", help="Modes to tie, such as 0,1.", show_default="none")
    ] = "",
    constraint: Annotated[
        str, typer.Option(help="Bound linear predictors: rescale or barrier.", show_default="none")
    ] = "",
    max_theta: Annotated[
        float, typer.Option(help="The bound on linear predictors, if there is a constraint.")
    ] = 30.0,
    ridge: Annotated[float, typer.Option(help="Ridge penalty of the coefficients.")] = 0.0,
    groups: Annotated[
        int, typer.Option(help="Group the indices of the last mode into so many; 0 for none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of folds and random starts.")] = 0,
    jobs: Annotated[int, typer.Option(help="Fits at a time while a rank is searched.")] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for coefficients and pictures.", show_default="none"),
    ] = None,
    overwrite: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Explain a tensor by covariates of its modes.

    Example: tesseral regress nations --rank 4 --constraint barrier --max-theta 10 --groups 4

    Example: tesseral regress brain.npz --covariates 2=people.csv --formula '2=~ sex + age'

    Where sex and age are arrays in brain.npz: tesseral regress brain.npz --formula '2=~ sex + age'
    """
    from tesseral.regress import TensorResponseRegressor

    if out is not None:
        check_output(out, overwrite=overwrite)
        require("matplotlib", extra="plot", purpose="tesseral regress --out")
    given = read_data(data, tensor, covariates or [], formula or [])
    model = TensorResponseRegressor(
        rank=parse_rank(rank),
        family=family or ("binomial" if data == NATIONS else "normal"),
        symmetric=[parse_modes(symmetric)] if symmetric else False,
        constraint=constraint or None,
        max_theta=max_theta,
        ridge=ridge,
        random_state=seed,
        n_jobs=jobs,
    )
    with progress() as bars:
        bars.add_task("fitting", total=None)
        model.fit(labelled(given), named(given))
        record = describe(model, groups)
    if out is not None:
        with atomic_directory(out, overwrite=overwrite) as folder:
            explained = [mode for mode, x in enumerate(given.covariates) if x is not None]
            save(model, folder, explained)
    if json:
        print_json(record)
        return
    show(model, record)
    if out is not None:
        typer.echo(f"wrote {out}: summary.txt, coefficients in fit.npz, and pictures")


def read_data(
    data: str, tensor: str | None, sources: list[str], formulas: list[str] | None = None
) -> Data:
    """Return the response and covariates that the arguments name.

    Raises
    ------
    DataError, ParameterError
        If something is missing or cannot be read.
    """
    if data == NATIONS:
        from tesseral.datasets import load_nations

        nations = load_nations()
        attributes = tuple(map(str, nations.covariate))
        countries = tuple(map(str, nations.country))
        found = Data(
            tensor=nations.tensor,
            covariates=[nations.covariates, nations.covariates, None],
            names=[attributes, attributes, None],
            rows=[countries, countries, tuple(map(str, nations.relation))],
            dims=("sender", "receiver", "relation"),
        )
        arrays: dict[str, Any] = {}
    else:
        arrays = read_arrays(Path(data), otherwise=f", or the word {NATIONS}")
        response = entry(Path(data), arrays, tensor, option="--tensor")
        order = response.ndim
        found = Data(
            tensor=response,
            covariates=[None] * order,
            names=[None] * order,
            rows=[None] * order,
            dims=tuple(f"mode {mode}" for mode in range(order)),
        )
    by_mode = dict(_assigned("--formula", text, len(found.dims)) for text in formulas or [])
    for source in sources:
        mode, name = _assigned("--covariates", source, len(found.dims))
        if mode in by_mode:
            table = arrays[name] if name in arrays else _data_frame(Path(name))
            found.covariates[mode] = (by_mode.pop(mode), table)
            found.names[mode] = None
        else:
            found.covariates[mode], found.names[mode] = _covariates(source, name, arrays)
    for mode, text in by_mode.items():
        table = _columns(arrays, found.tensor.shape[mode])
        if table is None:
            raise ParameterError(
                f"--formula {mode}={text}: {data} has no arrays with "
                f"{found.tensor.shape[mode]} entries; name the table of mode {mode} with "
                f"--covariates {mode}=FILE.csv."
            )
        found.covariates[mode] = (text, table)
    return found


def labelled(data: Data) -> Any:
    """Return the response with names of its modes and rows, as xarray would give them."""
    return _Labelled(data)


def named(data: Data) -> list[Any]:
    """Return the covariates of every mode, with their names where they have some."""
    return [
        matrix if names is None or matrix is None else _Frame(matrix, names)
        for matrix, names in zip(data.covariates, data.names, strict=True)
    ]


def parse_rank(text: str) -> Any:
    """Return the rank that an argument means."""
    if text in ("bic", "cv"):
        return text
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(
            f"--rank must be a number, numbers such as 3,3,2, bic or cv; got {text!r}."
        ) from None
    return values[0] if len(values) == 1 else tuple(values)


def parse_modes(text: str) -> list[int]:
    """Return the modes that an argument means."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(f"--symmetric must be modes such as 0,1; got {text!r}.") from None


def describe(model: "TensorResponseRegressor", groups: int) -> dict[str, Any]:
    """Return what the command prints, as plain values."""
    from tesseral.regress import group_rows

    summary = model.summary()
    record: dict[str, Any] = {
        "shape": list(model.predict().shape),
        "family": model.family,
        "rank": list(model.rank_),
        "log_likelihood": model.log_likelihood_,
        "bic": model.bic_,
        "parameters": model.dof_,
        "observations": model.n_entries_,
        "dispersion": model.dispersion_,
        "rounds": model.n_iter_,
        "converged": model.converged_,
        "separated": model.separation_ is not None,
        "effects": summary.effects,
        "coefficients": summary.coefficients,
        "note": summary.note,
    }
    if isinstance(model.rank, str):
        record["tried"] = [{**row, "rank": list(row["rank"])} for row in model.selection_.table()]
    if groups:
        mode = len(model.dims_) - 1
        labels = group_rows(model, mode, groups)
        names = np.array(model.covariate_names_[mode])
        record["groups"] = [[str(n) for n in names[labels == g]] for g in range(groups)]
    return record


def show(model: "TensorResponseRegressor", record: dict[str, Any]) -> None:
    """Print a record for people."""
    if "tried" in record:
        score = str(model.rank)
        rows = [
            [",".join(map(str, row["rank"])), str(row["dof"]), f"{row[score]:.4f}"]
            for row in record["tried"][:8]
        ]
        print_table(
            f"the best of {len(record['tried'])} ranks", ["rank", "parameters", score], rows
        )
    typer.echo(str(model.summary()))
    for number, members in enumerate(record.get("groups", []), start=1):
        typer.echo(f"\nGroup {number} of {model.dims_[-1]}: {', '.join(members)}")


def save(model: "TensorResponseRegressor", folder: Path, explained: list[int]) -> None:
    """Write coefficients, the summary and pictures; modes ``explained`` have covariates."""
    from tesseral.regress import plots

    arrays: dict[str, Any] = {f"factor{mode}": f for mode, f in enumerate(model.factors_)}
    arrays |= {"coef": model.coef_, "core": model.core_, "mean": model.predict()}
    np.savez_compressed(folder / "fit.npz", **arrays)
    (folder / "summary.txt").write_text(str(model.summary()) + "\n", encoding="utf-8")
    figures = {"predicted_observed": plots.predicted_observed(model)}
    for mode in range(min(len(model.dims_), _PICTURED)):
        figures[f"factor{mode}"] = plots.factor_loadings(model, mode)
        figures[f"residuals{mode}"] = plots.residual_map(model, mode)
        if model.covariate_names_[mode] and model.coef_.ndim > 1:
            figures[f"coefficients{mode}"] = plots.coefficient_slices(model, mode)
    if isinstance(model.rank, str):
        figures["ranks"] = plots.selection_curve(model.selection_)
    for mode in explained:
        for number, name in enumerate(model.covariate_names_[mode][:_PICTURED]):
            try:
                figures[f"effect{mode}-{_as_file_name(name)}"] = plots.effects(model, mode, number)
            except InformationError:  # the summary says why there are no standard errors
                break
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=110)


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name)


class _Labelled:
    """A response with the attributes that carry names in xarray."""

    def __init__(self, data: Data) -> None:
        self.data = data.tensor
        self.dims = data.dims
        self.coords = {
            dim: names for dim, names in zip(data.dims, data.rows, strict=True) if names is not None
        }


class _Frame:
    """A matrix with the attributes that carry names in pandas."""

    def __init__(self, matrix: Any, columns: tuple[str, ...]) -> None:
        self.matrix = matrix
        self.columns = columns
        self.index = range(len(matrix))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.matrix, dtype=dtype)


def _assigned(option: str, text: str, order: int) -> tuple[int, str]:
    """Return a mode and what stands after it."""
    mode, found, rest = text.partition("=")
    if not found or not mode.strip().isdigit() or int(mode) >= order:
        what = option.removeprefix("--").removesuffix("s").upper()
        what = "SOURCE" if what == "COVARIATE" else what
        raise ParameterError(
            f"{option} must be MODE={what} with a mode from 0 to {order - 1}; got {text!r}."
        )
    return int(mode), rest.strip()


def _columns(arrays: dict[str, Any], length: int) -> Any:
    """Return the arrays of the data that have one entry for each index of a mode as a table."""
    columns = {n: a for n, a in arrays.items() if getattr(a, "shape", ()) == (length,)}
    if not columns:
        return None
    pandas = require("pandas", extra="formula", purpose="tesseral regress --formula")
    return pandas.DataFrame(columns)


def _data_frame(path: Path) -> Any:
    """Return a table as pandas reads it, for a formula."""
    pandas = require("pandas", extra="formula", purpose="tesseral regress --formula")
    try:
        return pandas.read_csv(path, skipinitialspace=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (ValueError, OSError) as error:  # what pandas raises of a bad file is a ValueError
        raise DataError(f"{path} cannot be read as a table: {error}.") from None


def _covariates(
    source: str, name: str, arrays: dict[str, Any]
) -> tuple[Any, tuple[str, ...] | None]:
    """Return the matrix that a source names, and the names of its columns."""
    if name in arrays:
        return arrays[name], None
    path = Path(name)
    if path.suffix == ".csv":
        return _table(path)
    if path.suffix == ".npy":
        return next(iter(read_arrays(path).values())), None
    raise DataError(
        f"--covariates {source}: {name!r} is neither a .csv nor a .npy file nor an array of the "
        f"data{', which has ' + ', '.join(arrays) if arrays else ''}."
    )


def _table(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the numbers in a .csv file, and its header."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = [line for line in csv.reader(file) if line] or [[]]
            if not header:
                raise ValueError("it is empty")
        for number, line in enumerate(lines, start=1):
            if len(line) != len(header):
                raise ValueError(
                    f"{len(header)} columns have names, row {number} has {len(line)} cells (a "
                    "column of row names needs a name, too)"
                )
        values = [[_number(cell) for cell in line] for line in lines]
        return np.array(values, dtype=np.float64), tuple(cell.strip() for cell in header)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.") from None
    except (ValueError, csv.Error) as error:
        hint = "; a quotation mark may not be closed" if isinstance(error, csv.Error) else ""
        raise DataError(
            f"{path} cannot be read as a table of numbers under a header: {error}{hint}."
        ) from None


def _number(cell: str) -> float:
    return float(cell) if cell.strip() else math.nan
