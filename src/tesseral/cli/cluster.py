"""``tesseral cluster``: the clusters of a tensor, network or hypergraph, with a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tesseral._errors import ParameterError
from tesseral.cli.console import print_json, print_table
from tesseral.cli.inputs import Overwrite
from tesseral.cli.tensors import EXAMPLE, NamedTensor, read_tensor

if TYPE_CHECKING:
    from tesseral.report.cluster.record import ClusterRecord

METHODS = ("dtbm", "hlloyd", "hosvd", "hosvd+", "score")
FAMILIES = ("normal", "binomial", "poisson")


def cluster(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="An array (.npy, .npz, .rda, .rds), an edge list or hyperedges (.csv, .parquet), "
            f"or the word {EXAMPLE} for the legislature in the package.",
            show_default=False,
        ),
    ],
    clusters: Annotated[
        str, typer.Option(help="How many: a number, one for each mode as 4,4,3, or bic.")
    ] = "bic",
    symmetric: Annotated[
        str,
        typer.Option(help="Modes that are the same nodes: auto, all, none, or groups as 0,1;2,3."),
    ] = "auto",
    family: Annotated[str, typer.Option(help="normal, binomial or poisson.")] = "normal",
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "dtbm",
    refine: Annotated[
        bool, typer.Option("--refine", help="Go on by likelihood of the family.")
    ] = False,
    tensor: Annotated[
        str | None,
        typer.Option(help="Name of the tensor in an .npz or R file.", show_default="tensor"),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Array of such a file with the names of nodes.")
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help="Array of such a file with known clusters of mode 0.")
    ] = None,
    order: Annotated[int, typer.Option(help="Modes of the tensor that hyperedges make.")] = 3,
    nodes: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMNS",
            help="Columns of nodes in a table, as from,to.",
            show_default="all others",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of an edge list's weights.",
            show_default="value, weight or count",
        ),
    ] = None,
    directed: Annotated[
        bool,
        typer.Option(
            "--directed",
            help="An edge of a table goes one way, and its columns are different nodes, unless "
            "--symmetric ties them.",
        ),
    ] = False,
    resamples: Annotated[
        int, typer.Option(help="Fits to random parts of the data, for a consensus matrix.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Directory to write.")] = Path("clusters"),
    overwrite: Overwrite = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Cluster every mode of a tensor, network or hypergraph.

    OUT gets labels, block means, degrees, figures and a report.

    A table needs a line of column names. Every line is an edge, its nodes in as many columns as the
    tensor has modes, with its weight in a column named value, weight or count if there is one; or,
    with a column named edge, one node of a hyperedge. Columns of other names: --nodes, --weights.
    Lines that name the same edge are added.

    Example: tesseral cluster peru --clusters 5 --out peru

    Example: tesseral cluster mails.csv --nodes sender,receiver --weights mails --clusters 3

    The same, one cluster a person, but who wrote to whom matters: add --directed --symmetric all
    """
    from tesseral.core.constraints import check_parameter, integer
    from tesseral.report.charts import require_matplotlib
    from tesseral.report.cluster.run import fit_record, write_record
    from tesseral.runtime.files import check_output

    require_matplotlib()
    check_output(out, overwrite=overwrite)
    check_parameter("cluster", "--resamples", resamples, integer(0))
    model = build_model(
        method, clusters, {"symmetric": symmetric, "family": family, "refine": refine, "seed": seed}
    )
    given: NamedTensor = read_tensor(
        data,
        array=tensor,
        names=names,
        truth=truth,
        order=order,
        directed=directed,
        symmetric=_ties(symmetric),
        nodes=nodes,
        weights=weights,
    )
    record = fit_record(
        model,
        given.tensor,
        data=data,
        names=given.names,
        truth=given.truth,
        seed=seed,
        resamples=resamples,
    )
    write_record(record, given.tensor, out, overwrite=overwrite)
    if json:
        print_json({"report": str(out / "report.html"), **record.as_dict()})
    else:
        _show(record, out)


def build_model(method: str, clusters: str, options: dict[str, Any]) -> Any:
    """Return the estimator that the options describe.

    Raises
    ------
    ParameterError
        If an option is not one of those allowed.
    """
    from tesseral.cluster import (
        DegreeCorrectedTensorBlockModel,
        HigherOrderLloyd,
        SpectralTensorClustering,
    )

    if method not in METHODS:
        raise ParameterError(f"--method must be one of {', '.join(METHODS)}; got {method}.")
    if options["family"] not in FAMILIES:
        raise ParameterError(
            f"--family must be one of {', '.join(FAMILIES)}; got {options['family']}."
        )
    if options["refine"] and method != "dtbm":
        raise ParameterError("--refine goes with --method dtbm only.")
    common = {
        "n_clusters": _numbers(clusters),
        "symmetric": _ties(options["symmetric"]),
        "family": options["family"],
        "random_state": options["seed"],
    }
    if method == "dtbm":
        return DegreeCorrectedTensorBlockModel(**common, refine=options["refine"])
    if method == "hlloyd":
        return HigherOrderLloyd(**common)
    rows = {"hosvd": "plain", "hosvd+": "unit", "score": "ratio"}[method]
    return SpectralTensorClustering(**common, rows=rows)


def _numbers(text: str) -> int | list[int] | str:
    if text == "bic":
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(
            f"--clusters must be a number, one for each mode as 4,4,3, or bic; got {text}."
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _ties(text: str) -> str | bool | list[list[int]]:
    words: dict[str, str | bool] = {"auto": "auto", "all": True, "none": False}
    if text in words:
        return words[text]
    try:
        return [[int(mode) for mode in group.split(",")] for group in text.split(";")]
    except ValueError:
        raise ParameterError(
            f"--symmetric must be auto, all, none, or groups of modes as 0,1;2,3; got {text}."
        ) from None


def _show(record: "ClusterRecord", out: Path) -> None:
    from tesseral.report.cluster.record import cluster_table, diagnosis_table

    for text in record.warnings:
        typer.echo(f"warning: {text}", err=True)
    shape = " x ".join(str(len(labels)) for labels in record.model.labels_)
    print_table(f"Clusters of {record.data}, {shape}", *cluster_table(record))
    print_table("Separation", *diagnosis_table(record))
    for group in record.model.symmetric_ if record.stability else ():
        rate = record.stability[group[0]].error_rate
        typer.echo(f"mode {group[0]}: error rate of fits to parts of the data {rate:.4f}")
    if record.error_rate is not None:
        typer.echo(f"clustering error rate against the truth: {record.error_rate:.4f}")
    typer.echo(f"BIC {record.model.bic_:.6g}, log-likelihood {record.model.log_likelihood_:.6g}")
    typer.echo(f"wrote {out / 'report.html'}")
