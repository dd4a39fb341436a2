"""The model in tables of words; predictions are called so."""

from dataclasses import asdict
from typing import Any

from tesseral.attention.model import MACHINES, machine
from tesseral.bench.model.cases import TERA, checks, checks_of_others
from tesseral.bench.model.forecasts import (
    NpuForecast,
    handover_range,
    npu_decoding,
    npu_forecasts,
    volta_forecasts,
)

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns and rows."""

PAPER_NPU = 10.7
"""How much faster than standard attention FastAttention is on an Ascend NPU, as its paper says."""

RANGE_LENGTH, DECODED = 8192, 131072


def run() -> dict[str, Any]:
    """Return all predictions as numbers, with the machines they are of."""
    return {
        "predicted": True,
        "checks": [asdict(each) | {"error": each.error} for each in checks()],
        "others": [asdict(each) | {"error": each.error} for each in checks_of_others()],
        "npu": [_npu_numbers(each) for each in npu_forecasts()],
        "npu_handover": [
            {"handover_s": seconds, **_npu_numbers(each)}
            for seconds, each in handover_range(RANGE_LENGTH)
        ],
        "npu_decoding_s": npu_decoding(DECODED),
        "v100": [asdict(each) for each in volta_forecasts()],
        "machines": {name: asdict(machine(name)) for name in MACHINES},
    }


def all_tables(record: dict[str, Any]) -> list[Table]:
    """Return the tables of a record."""
    return [
        _check_table("Measured on one H200, and predicted: our Triton kernels", record["checks"]),
        _check_table(
            "Measured on one H200, and predicted: unfused, and with operands in registers",
            record["others"],
        ),
        _npu_table(record),
        _range_table(record),
        _volta_table(record),
    ]


def summary(record: dict[str, Any]) -> str:
    """Return the errors of the model in one line."""
    errors = [abs(row["error"]) for row in record["checks"]]
    mean = sum(errors) / len(errors)
    seconds, reading = record["npu_decoding_s"]
    return (
        f"our Triton kernels on the H200: {mean:.0%} off on average, {max(errors):.0%} at most; "
        f"predicted decoding of {DECODED} keys on Ascend 910B2: {1e6 * seconds:.0f} us, reading "
        f"them {1e6 * reading:.0f} us"
    )


def _npu_numbers(forecast: NpuForecast) -> dict[str, Any]:
    return {
        "case": forecast.case,
        "tflops": {
            name: getattr(forecast, name).rate / TERA
            for name in ("two_level", "one_level", "unskipped", "standard")
        },
        "over": {name: forecast.over(name) for name in ("one_level", "unskipped", "standard")},
        "busiest": forecast.two_level.busiest,
    }


def _check_table(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = ["case", "kernel", "measured", "predicted", "error", "bound by"]
    lines = []
    for row in rows:
        numbers = [f"{row[name]:.4g} {row['unit']}" for name in ("measured", "predicted")]
        lines.append([row["case"], row["of"], *numbers, f"{row['error']:+.0%}", row["busiest"]])
    return title, columns, lines


def _npu_table(record: dict[str, Any]) -> Table:
    columns = ["case", "two levels", "one level", "no tiling-mask", "standard", "over standard"]
    lines = []
    for row in record["npu"]:
        rates = [f"{row['tflops'][n]:.0f}" for n in ("two_level", "one_level", "unskipped")]
        standard = f"{row['tflops']['standard']:.0f}"
        lines.append([row["case"], *rates, standard, f"{row['over']['standard']:.1f}x"])
    title = f"Predicted for Ascend 910B2, TFLOP/s; the paper says {PAPER_NPU}x over standard"
    return title, columns, lines


def _range_table(record: dict[str, Any]) -> Table:
    columns = ["handover", "two levels", "one level", "over one level", "over standard"]
    lines = [
        [
            f"{1e6 * row['handover_s']:.3g} us",
            *(f"{row['tflops'][name]:.0f}" for name in ("two_level", "one_level")),
            f"{row['over']['one_level']:.2f}x",
            f"{row['over']['standard']:.1f}x",
        ]
        for row in record["npu_handover"]
    ]
    title = f"Predicted for Ascend 910B2, {RANGE_LENGTH} causal, by the assumed handover"
    return title, columns, lines


def _volta_table(record: dict[str, Any]) -> Table:
    columns = ["case", "predicted", "published", "by"]
    lines = [
        [
            row["what"],
            *(f"{row[name]:.3g} {row['unit']}" for name in ("predicted", "published")),
            row["source"],
        ]
        for row in record["v100"]
    ]
    return "Predicted for V100", columns, lines
