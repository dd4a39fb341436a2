import hashlib
import shutil

import numpy as np
import pytest

from tesseral import datasets
from tesseral._errors import DataError, ParameterError
from tesseral.datasets import _files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the package data that a test may damage; the model's weights stay out."""
    copy = tmp_path / "data"
    shutil.copytree(_files.FOLDER, copy, ignore=shutil.ignore_patterns("model.safetensors"))
    monkeypatch.setattr(_files, "FOLDER", copy)
    return copy


def shipped_files():
    documents = {"README.md", "SHA256SUMS"}
    found = (path for path in _files.FOLDER.rglob("*") if path.is_file())
    return {p.relative_to(_files.FOLDER).as_posix() for p in found if p.name not in documents}


def test_the_table_lists_every_shipped_file():
    assert set(_files._checksums()) == shipped_files()


def test_only_the_model_is_larger_than_one_mebibyte():
    large = {name for name in shipped_files() if (_files.FOLDER / name).stat().st_size > 2**20}
    assert large == {"lm-5m/model.safetensors"}


def test_one_changed_byte_is_noticed(folder):
    content = bytearray((folder / "peru.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "peru.npz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match=rf"peru\.npz is damaged: its SHA-256 is {digest}"):
        datasets.load_peru()


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("nations.npz", datasets.load_nations),
        ("books/test.txt", lambda: datasets.load_books_excerpt("test")),
        ("lm-5m/model.safetensors", datasets.load_embedded_lm),
        ("SHA256SUMS", datasets.load_peru),
    ],
)
def test_a_missing_file_is_named(folder, name, load):
    (folder / name).unlink(missing_ok=True)
    with pytest.raises(DataError, match=rf"{name} is missing; reinstall tesseral"):
        load()


def test_peru_follows_from_its_table_of_bills():
    peru = datasets.load_peru()
    place = {legislator: i for i, legislator in enumerate(peru.legislator_id)}
    bills, bill = np.unique(peru.law_cdn, return_inverse=True)
    sponsors = np.zeros((len(bills), len(place)))
    sponsors[bill, [place[legislator] for legislator in peru.law_legislator_id]] = 1.0
    together = np.stack([(sponsors * column[:, None]).T @ sponsors for column in sponsors.T])
    i, j, k = np.ogrid[:116, :116, :116]
    distinct = (i != j) & (j != k) & (i != k)
    assert len(bills) == 802
    np.testing.assert_array_equal(peru.tensor[distinct], together[distinct] > 0)
    assert peru.tensor[~distinct].sum() == 12


def test_peru_has_five_parties():
    _, sizes = np.unique(datasets.load_peru().party, return_counts=True)
    assert sizes.tolist() == [13, 5, 35, 18, 45]


def test_nations_keeps_what_is_missing():
    nations = datasets.load_nations()
    missing = np.isnan(nations.tensor)
    itself = np.eye(14, dtype=bool)
    assert missing[itself].all()
    assert missing[~itself].sum() == 435
    assert set(nations.tensor[~missing]) == {0.0, 1.0}
    assert nations.tensor.shape == (*nations.country.shape * 2, *nations.relation.shape)
    assert nations.covariates.shape == (*nations.country.shape, *nations.covariate.shape)


@pytest.mark.parametrize("load", [datasets.load_peru, datasets.load_nations])
def test_loaded_records_cannot_be_changed(load):
    record = load()
    with pytest.raises(AttributeError):
        record.provenance = ""
    with pytest.raises(ValueError, match="read-only"):
        record.tensor[0, 0, 0] = 1


@pytest.mark.parametrize("load", [datasets.load_peru, datasets.load_nations])
def test_provenance_names_the_source(load):
    assert "as distributed with the R package" in load().provenance.replace("and d", "as d")


def test_the_embedded_model_is_a_complete_directory():
    names = {path.name for path in datasets.load_embedded_lm().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names


def test_the_excerpts_hold_enough_sequences_for_calibration_and_test():
    tokenizers = pytest.importorskip("tokenizers")
    file = datasets.load_embedded_lm() / "tokenizer.json"
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    lengths = [
        len(tokenizer.encode(datasets.load_books_excerpt(s)).ids) for s in ("calibration", "test")
    ]
    assert [length // 1024 for length in lengths] == [197, 94]


def test_the_excerpts_share_no_book():
    def titles(split):
        lines = datasets.load_books_excerpt(split).splitlines()
        return {line for line in lines if line.startswith("Title: ")}

    assert len(titles("calibration")) == len(titles("test")) == 4
    assert not titles("calibration") & titles("test")


def test_an_unknown_split_is_refused():
    with pytest.raises(ParameterError, match="split must be 'calibration' or 'test'; got 'train'"):
        datasets.load_books_excerpt("train")
