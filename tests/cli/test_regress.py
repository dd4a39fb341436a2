"""``tesseral regress``."""

import json

import numpy as np
import pytest

from tesseral.datasets import make_tensor_response


@pytest.fixture
def folder(tmp_path):
    """A folder with a response and covariates of its modes 0 and 2."""
    truth = make_tensor_response((20, 12, 15), 2, (3, None, 2), signal=5.0, random_state=0)
    np.savez(tmp_path / "data.npz", tensor=truth.tensor, people=truth.covariates[0])
    np.save(tmp_path / "plain.npy", truth.tensor)
    rows = "\n".join(",".join(map(str, row)) for row in truth.covariates[2])
    (tmp_path / "time.csv").write_text(f"age, sex\n{rows}\n")
    groups = "\n".join(f"{k / 10}, {'ab'[k % 2]}" for k in range(15))
    (tmp_path / "groups.csv").write_text(f"age, group\n{groups}\n")
    return tmp_path


def test_nations_are_regressed_and_their_relations_grouped(run):
    result = run(
        "regress", "nations", "--rank", 4, "--constraint", "barrier", "--max-theta", 10,
        "--groups", 4, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["rank"] == [4, 4, 4]
    assert record["observations"] == 14 * 14 * 56 - 784 - 435
    groups = record["groups"]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 56

    def together(*names):
        return any(set(names) <= set(group) for group in groups)

    assert together("warning", "militaryactions", "violentactions", "aidenemy")
    assert together("exports", "tourism", "treaties")
    assert together("intergovorgs", "ngo")
    assert not together("militaryactions", "exports")


def test_a_file_is_regressed_with_covariates_from_anywhere(run, folder):
    result = run(
        "regress", folder / "data.npz", "--covariates", "0=people",
        "--covariates", f"2={folder / 'time.csv'}", "--rank", "2,2,2",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "Covariates of mode 2" in result.stdout
    assert "sex" in result.stdout
    assert "20 x 12 x 15" in result.stdout


def test_a_formula_turns_a_table_into_covariates_with_pictures_of_their_effects(run, folder):
    out = folder / "out"
    result = run(
        "regress", folder / "data.npz", "--covariates", f"2={folder / 'groups.csv'}",
        "--formula", "2=~ age + group", "--rank", "2", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "group[T.b]" in result.stdout
    names = {path.name for path in out.glob("effect*.png")}
    assert names == {"effect2-Intercept.png", "effect2-age.png", "effect2-group_T.b_.png"}


def test_a_formula_reads_arrays_of_the_data_themselves(run, folder):
    with np.load(folder / "data.npz") as file:
        tensor = file["tensor"]
    group = np.array(list("ab" * 7 + "a"))
    np.savez(folder / "own.npz", tensor=tensor, age=np.arange(15) / 10, group=group)
    result = run("regress", folder / "own.npz", "--formula", "2=~ age + group", "--rank", "2")
    assert result.exit_code == 0, result.stderr
    other = run(
        "regress", folder / "data.npz", "--covariates", f"2={folder / 'groups.csv'}",
        "--formula", "2=~ age + group", "--rank", "2",
    )  # fmt: skip
    assert result.stdout == other.stdout
    assert "group[T.b]" in result.stdout


def test_an_array_and_a_table_that_r_wrote_are_regressed(run, folder):
    rdata, pandas = pytest.importorskip("rdata"), pytest.importorskip("pandas")
    with np.load(folder / "data.npz") as file:
        tensor = file["tensor"]
    attr = pandas.DataFrame({"age": np.arange(15) / 10, "dose": np.cos(np.arange(15))})
    rdata.write_rda(folder / "r.rda", {"tensor": tensor, "attr": attr})
    by_name = run(
        "regress", folder / "r.rda", "--covariates", "2=attr", "--formula", "2=~ age + dose",
        "--rank", "2",
    )  # fmt: skip
    assert by_name.exit_code == 0, by_name.stderr
    assert "dose" in by_name.stdout


def test_a_rank_is_searched_and_pictures_are_written(run, folder):
    out = folder / "out"
    result = run("regress", folder / "plain.npy", "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "the best of" in result.stdout
    assert result.stdout.endswith(
        f"wrote {out}: summary.txt, coefficients in fit.npz, and pictures\n"
    )
    written = {path.name for path in out.iterdir()}
    assert {"fit.npz", "summary.txt", "predicted_observed.png", "ranks.png"} <= written
    again = run("regress", folder / "plain.npy", "--out", out)
    assert again.exit_code == 2
    assert "exists; choose another output" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.npz"], "nothing.npz does not exist; give a .npy, .npz, .rda or .rds file"),
        (["data.npz", "--tensor", "Y"], "has no array 'Y'; it has people, tensor. Name one"),
        (["data.npz", "--rank", "many"], "--rank must be a number"),
        (["data.npz", "--symmetric", "a"], "--symmetric must be modes such as 0,1"),
        (["data.npz", "--covariates", "people"], "must be MODE=SOURCE with a mode from 0 to 2"),
        (["data.npz", "--covariates", "7=people"], "must be MODE=SOURCE with a mode from 0 to 2"),
        (["data.npz", "--covariates", "1=people"], "mode 1 has 12 indices"),
        (["data.npz", "--covariates", "0=x.txt"], "neither a .csv nor a .npy file"),
        (["data.npz", "--covariates", "0=x.csv"], "x.csv does not exist"),
        (["data.npz", "--rank", "2", "--family", "poisson"], "needs counts"),
        (["data.npz", "--formula", "2=~ age"], "has no arrays with 15 entries; name the table"),
        (["data.npz", "--formula", "~ age"], "--formula must be MODE=FORMULA"),
        (["data.npz", "--covariates", "2=x.csv", "--formula", "2=~ age"], "x.csv does not exist"),
        (["data.npz", "--covariates", "2=rows.csv"], "2 columns have names, row 1 has 3 cells"),
        (["data.npz", "--covariates", "2=empty.csv"], "a table of numbers under a header: it is"),
        (["data.npz", "--covariates", "2=open.csv"], "a quotation mark may not be closed"),
        (["time.csv"], "is of no kind that is read; give a .npy, .npz, .rda or .rds file"),
        (
            ["data.npz", "--covariates", "2=groups.csv", "--formula", "2=~ agee"],
            "The columns are age, group.",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(refused, folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    (folder / "rows.csv").write_text("age,dose\n1,30,0.5\n2,40,0.7\n")
    (folder / "empty.csv").write_text("")
    (folder / "open.csv").write_text('a\n"1\n' + "2\n" * 80000)
    assert words in refused("regress", *arguments)
