import csv
import json

import numpy as np
import pytest

from tesseral._errors import DataError
from tesseral.cli.tensors import read_tensor
from tesseral.core import CooTensor
from tesseral.datasets import load_peru, make_block_tensor


@pytest.fixture(scope="module")
def planted():
    return make_block_tensor((20, 20, 20), 2, symmetric=True, noise=0.2, random_state=0)


@pytest.fixture
def npz(tmp_path, planted):
    file = tmp_path / "data.npz"
    names = np.array([f"node {i}" for i in range(20)])
    np.savez(file, tensor=planted.tensor, names=names, truth=planted.labels[0], x=np.ones(3))
    return file


def write_table(path, head, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def test_peru_comes_out_as_in_the_paper(run, tmp_path):
    result = run("cluster", "peru", "--clusters", 5, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["error_rate"] == pytest.approx(0.1156, abs=5e-5)
    assert record["n_clusters"] == [5, 5, 5]
    assert record["symmetric"] == [[0, 1, 2]]
    assert record["diagnosis"][0]["regime"] == "polynomial time"


def test_everything_is_written_and_says_the_same(run, tmp_path, npz, planted):
    out = tmp_path / "out"
    options = ("--clusters", "bic", "--symmetric", "all", "--names", "names", "--truth", "truth")
    result = run("cluster", npz, *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "clustering error rate against the truth: 0.0000" in result.stdout
    with np.load(out / "result.npz") as file:
        found = dict(file)
    with (out / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["cluster"]) for row in rows[:20]] == found["labels_0"].tolist()
    assert rows[3]["node"] == "node 3"
    assert float(rows[3]["degree"]) == pytest.approx(found["degrees_0"][3], rel=1e-5)
    assert found["core"].shape == (2, 2, 2)
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert figures == {"slice-0", "slice-1", "core", "degrees-0", "bic", "phases"}
    assert "var(--" not in (out / "figures" / "core.svg").read_text()
    page = (out / "report.html").read_text()
    assert page.count("<svg") == len(figures)
    assert json.loads((out / "result.json").read_text())["n_clusters"] == [2, 2, 2]


def test_fits_to_parts_of_the_data_make_a_consensus_matrix(run, tmp_path, npz, planted):
    out = tmp_path / "out"
    options = ("--clusters", "2", "--symmetric", "all", "--resamples", "2")
    result = run("cluster", npz, *options, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "mode 0: error rate of fits to parts of the data" in result.stdout
    with np.load(out / "result.npz") as file:
        assert file["consensus_0"].shape == (20, 20)
    assert (out / "figures" / "consensus-0.svg").exists()
    assert len(json.loads((out / "result.json").read_text())["stability"]) == 3


@pytest.mark.parametrize("method", ["hlloyd", "hosvd", "hosvd+", "score"])
def test_every_method_runs(run, tmp_path, npz, method):
    options = ("--clusters", "2", "--method", method, "--out", tmp_path / "out")
    result = run("cluster", npz, *options, "--symmetric", "0,1", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["symmetric"] == [[0, 1], [2]]


def test_the_output_is_not_replaced_unasked(refused, run, tmp_path, npz):
    (tmp_path / "out").mkdir()
    words = refused("cluster", npz, "--clusters", 2, "--out", tmp_path / "out")
    assert "exists; choose another output" in words
    result = run("cluster", npz, "--clusters", 2, "--out", tmp_path / "out", "--overwrite")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--clusters", "two"), "--clusters must be a number"),
        (("--clusters", "2,2"), "sequence of length 3"),
        (("--symmetric", "both"), "--symmetric must be auto"),
        (("--family", "gamma"), "--family must be one of"),
        (("--method", "dtm"), "--method must be one of"),
        (("--method", "score", "--refine"), "--refine goes with"),
        (("--tensor", "y"), "has no array 'y'; it has names, tensor, truth, x"),
        (("--truth", "x"), "not one cluster for each node"),
        (("--names", "x"), "does not name every node"),
    ],
)
def test_mistakes_are_told_in_one_line(refused, tmp_path, npz, options, words):
    defaults = () if "--clusters" in options else ("--clusters", "2")
    assert words in refused("cluster", npz, *defaults, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "is of no kind that is read"),
        ("missing.npy", None, "does not exist"),
        ("a.npy", "not an array", "cannot be read"),
        ("a.csv", "i,j\n", "at least one edge"),
        ("a.csv", "", "at least one edge"),
        ("a.csv", "i,j\n1,2\n3\n", "2 columns have names, row 2 has 1: 3"),
        ("a.csv", "i,j,value\n1,2,x\n", "the column 'value' must hold numbers; row 1 has 'x'"),
        ("a.csv", "i;j;Count\na;b;2\na;c;1,5\n", "'Count' must hold numbers; row 2 has '1,5'"),
        ("a.csv", "i,j\n1,2\n,3\n", "the column 'i' has no node in row 2"),
        ("a.csv", "x,y,1\ny,z,2\n", "needs a line of column names; its first is x,y,1"),
        ("a.csv", "i\n1\n", "at least two columns of nodes"),
        ("a.csv", "1,2\n1,3\n", "needs a line of column names; its first is 1,2"),
        ("a.csv", "i, i\n1,2\n", "two columns of one name: i, i"),
        ("a.csv", "i,j,year\na,b,2\n", "add --weights 'year'; or name the columns of nodes"),
        ("a.parquet", "not a table", "cannot be read"),
        ("a.rda", "not written by R", "not a readable R data file"),
    ],
)
def test_files_that_cannot_be_used_are_named(refused, tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    line = refused("cluster", tmp_path / name, "--clusters", "2", "--out", tmp_path / "out")
    assert words in line
    assert name in line


def test_a_single_array_is_the_tensor(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3))
    np.savez(tmp_path / "b.npz", some=np.eye(3))
    for name in ("a.npy", "b.npz"):
        np.testing.assert_array_equal(read_tensor(str(tmp_path / name)).tensor, np.eye(3))


def test_a_list_of_edges_is_undirected_unless_said(tmp_path):
    rows = [("a", "b", 2), ("c", "a", 1), ("a", "b", 3)]
    path = write_table(tmp_path / "edges.csv", ["from", "to", "weight"], rows)
    both = read_tensor(str(path))
    assert [n.tolist() for n in both.names] == [["a", "b", "c"]] * 2
    np.testing.assert_array_equal(both.tensor.to_dense(), [[0, 5, 1], [5, 0, 0], [1, 0, 0]])
    one = read_tensor(str(path), directed=True)
    assert [n.tolist() for n in one.names] == [["a", "c"], ["a", "b"]]
    np.testing.assert_array_equal(one.tensor.to_dense(), [[0, 5], [1, 0]])


def test_an_edge_counts_once_from_a_node_to_itself(tmp_path):
    loops = [("a", "b", 2), ("c", "c", 3), ("b", "b", 1)]
    path = write_table(tmp_path / "edges.csv", ["from", "to", "weight"], loops)
    np.testing.assert_array_equal(
        read_tensor(str(path)).tensor.to_dense(), [[0, 2, 0], [2, 1, 0], [0, 0, 3]]
    )
    path = write_table(tmp_path / "three.csv", ["i", "j", "k"], [("a", "a", "b"), ("b", "b", "b")])
    three = read_tensor(str(path)).tensor.to_dense()
    assert three[0, 0, 1] == three[0, 1, 0] == three[1, 0, 0] == three[1, 1, 1] == 1
    assert three.sum() == 4


def test_tied_columns_of_directed_edges_share_their_nodes(tmp_path, capsys):
    rows = [("a", "b", 2), ("c", "a", 1), ("b", "a", 3)]
    path = write_table(tmp_path / "edges.csv", ["from", "to", "weight"], rows)
    for symmetric in (True, [[0, 1]]):
        tied = read_tensor(str(path), directed=True, symmetric=symmetric)
        assert [n.tolist() for n in tied.names] == [["a", "b", "c"]] * 2
        np.testing.assert_array_equal(tied.tensor.to_dense(), [[0, 2, 0], [3, 0, 0], [1, 0, 0]])
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(
        read_tensor(str(path)).tensor.to_dense(), [[0, 5, 1], [5, 0, 0], [1, 0, 0]]
    )
    assert "several directions; their weights are added" in capsys.readouterr().err
    rows = [("a", "b", "tea"), ("b", "c", "salt")]
    path = write_table(tmp_path / "trade.csv", ["from", "to", "good"], rows)
    trade = read_tensor(str(path), directed=True, symmetric=[[0, 1]])
    assert [n.tolist() for n in trade.names] == [["a", "b", "c"]] * 2 + [["salt", "tea"]]
    assert trade.tensor.to_dense()[0, 1, 1] == trade.tensor.to_dense()[1, 2, 0] == 1


def test_people_who_write_are_clustered_by_whom_they_write_to(run, tmp_path):
    path = write_table(tmp_path / "mails.csv", ["from", "to"], ["ab", "bc", "ca", "da"])
    given = ("cluster", path, "--clusters", 2, "--out", tmp_path / "out", "--json")
    result = run(*given, "--directed", "--symmetric", "all")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["shape"] == [4, 4]


def test_columns_of_other_names_are_named(tmp_path):
    rows = [("Ada, Countess", "Bo", "3", "1990"), ("Bo", "Cy", "4", "1991")]
    path = write_table(tmp_path / "mails.csv", ["Sender", "Receiver", "Mails", "Year"], rows)
    found = read_tensor(str(path), nodes="Sender, Receiver", weights="Mails")
    assert [n.tolist() for n in found.names] == [["Ada, Countess", "Bo", "Cy"]] * 2
    np.testing.assert_array_equal(found.tensor.to_dense(), [[0, 3, 0], [3, 0, 4], [0, 4, 0]])
    for nodes, weights in (("Sender,Sender", None), ("Sender,Mails", "Mails")):
        with pytest.raises(DataError, match="must name different columns"):
            read_tensor(str(path), nodes=nodes, weights=weights)
    with pytest.raises(DataError, match="names: name the columns of nodes, as --nodes") as refusal:
        read_tensor(str(path), weights="Mails")
    assert "'Year'" in str(refusal.value)
    unweighted = read_tensor(str(path), nodes="Sender,Receiver")
    np.testing.assert_array_equal(unweighted.tensor.to_dense(), found.tensor.to_dense() > 0)
    spreadsheet = tmp_path / "spreadsheet.csv"
    spreadsheet.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_tensor(str(spreadsheet), nodes="Sender,Receiver").tensor.shape == (3, 3)
    by_year = read_tensor(str(path), nodes="Sender,Receiver,Year", weights="Mails", directed=True)
    assert by_year.tensor.shape == (2, 2, 2)
    assert by_year.tensor.to_dense().sum() == 7


@pytest.mark.parametrize(("name", "between"), [("a.csv", ";"), ("A.TSV", "\t"), ("a.csv", ", ")])
def test_tables_of_spreadsheets_are_read(tmp_path, name, between):
    rows = [["Von", "Nach", "count"], ["Jörg Müller", "Änne", "2"], ["Änne", '"Ben, jr"', "1.5"]]
    lines = [between.join(row).replace(', "', ',"') for row in rows]
    (tmp_path / name).write_text("\r\n".join([*lines, between.strip(" ") * 2, ""]), "utf-8")
    found = read_tensor(str(tmp_path / name))
    assert found.names[0].tolist() == ["Ben, jr", "Jörg Müller", "Änne"]
    np.testing.assert_array_equal(found.tensor.to_dense(), [[0, 0, 1.5], [0, 0, 2], [1.5, 2, 0]])


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("i,j\nJörg,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text: byte 5"):
        read_tensor(str(tmp_path / "a.csv"))


def test_a_named_column_of_weights_comes_before_a_known_one(tmp_path):
    path = write_table(tmp_path / "a.csv", ["i", "j", "count", "w"], [("a", "b", "1", "5")])
    assert read_tensor(str(path), weights="w").tensor.to_dense()[0, 1] == 5
    with pytest.raises(DataError, match="no column 'v' for --weights; it has i, j, count, w"):
        read_tensor(str(path), weights="v")
    with pytest.raises(DataError, match="no column 'k' for --nodes"):
        read_tensor(str(path), nodes="i,k")


def peru_members():
    peru = load_peru()
    return list(zip(peru.law_cdn.tolist(), peru.law_legislator_id.tolist(), strict=True))


@pytest.mark.parametrize("form", ["csv", "members", "lists"])
def test_hyperedges_are_read_from_tables_of_members_or_lists(tmp_path, form):
    members = peru_members()
    if form == "csv":
        path = write_table(tmp_path / "bills.csv", ["edge", "node"], members)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        path, bills = tmp_path / "bills.parquet", {}
        for bill, name in members:
            bills.setdefault(bill, []).append(name)
        columns = {"sponsors": list(bills.values())}
        if form == "members":
            columns = {"edge": [b for b, _ in members], "node": [n for _, n in members]}
        parquet.write_table(pyarrow.table(columns), path)
    found = read_tensor(str(path))
    assert isinstance(found.tensor, CooTensor)
    peru = load_peru()
    order = [found.names[0].tolist().index(name) for name in peru.legislator_id]
    dense = found.tensor.to_dense()[np.ix_(order, order, order)]
    i, j, k = np.indices(dense.shape)
    distinct = (i != j) & (j != k) & (i != k)
    np.testing.assert_array_equal(dense[distinct], peru.tensor[distinct])


def test_hyperedges_are_clustered(run, tmp_path):
    path = write_table(tmp_path / "bills.csv", ["edge", "node"], peru_members())
    result = run("cluster", path, "--clusters", 5, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["shape"] == [116, 116, 116]


def test_arrays_that_r_wrote_are_read(run, tmp_path, npz):
    rdata = pytest.importorskip("rdata")
    with np.load(npz) as file:
        tensor, truth = file["tensor"], file["truth"]
    rdata.write_rda(tmp_path / "mine.rda", {"Y": tensor, "z": truth})
    options = ("--clusters", "2", "--out", tmp_path / "out", "--overwrite", "--json")
    result = run("cluster", tmp_path / "mine.rda", "--tensor", "Y", "--truth", "z", *options)
    assert result.exit_code == 0, result.stderr
    expected = run("cluster", npz, "--truth", "truth", *options)
    found, same = json.loads(result.stdout), json.loads(expected.stdout)
    assert found["error_rate"] == same["error_rate"]
    rdata.write_rds(tmp_path / "one.rds", tensor)
    result = run("cluster", tmp_path / "one.rds", *options)
    assert json.loads(result.stdout)["bic"] == same["bic"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("peru", {"truth": "club"}, "--truth would do nothing; they belong to files"),
        ("data.npz", {"nodes": "x,y", "directed": True}, "--nodes, --directed would do nothing"),
        ("edges.csv", {"array": "zz", "names": "n"}, "--tensor, --names would do nothing"),
        ("sets.csv", {"directed": True}, "hyperedges, which have no direction"),
        ("weighed.csv", {}, "hyperedges, which have no weights"),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, npz, name, options, words):
    write_table(tmp_path / "edges.csv", ["a", "b"], [["x", "y"]])
    write_table(tmp_path / "sets.csv", ["edge", "node"], [[1, "x"], [1, "y"], [1, "z"]])
    write_table(tmp_path / "weighed.csv", ["edge", "node", "weight"], [[1, "x", 5], [1, "y", 1]])
    with pytest.raises(DataError, match=words):
        read_tensor(name if name == "peru" else str(tmp_path / name), **options)


def test_a_weight_that_a_parquet_file_lacks_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"a": ["x", "y"], "b": ["y", "z"], "weight": [1.0, None]})
    parquet.write_table(table, tmp_path / "edges.parquet")
    with pytest.raises(DataError, match="'weight' must hold numbers; row 2 has None"):
        read_tensor(str(tmp_path / "edges.parquet"))


def test_damaged_files_are_told_in_one_line(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"cut\.npz cannot be read"):
        read_tensor(str(tmp_path / "cut.npz"))
    (tmp_path / "open.csv").write_text('a,b\n"x,y\n' + "z,w\n" * 40000)
    with pytest.raises(DataError, match="a quotation mark may not be closed"):
        read_tensor(str(tmp_path / "open.csv"))


def test_names_of_few_nodes_stand_beside_the_pictures(run, tmp_path, npz):
    out = tmp_path / "out"
    options = ("--clusters", "2", "--symmetric", "all", "--names", "names")
    assert run("cluster", npz, *options, "--out", out).exit_code == 0
    for figure in ("slice-0", "degrees-0"):
        svg = (out / "figures" / f"{figure}.svg").read_text()
        assert all(f">node {number}<" in svg for number in range(20))
