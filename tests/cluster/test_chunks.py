import json
import subprocess
import sys

import numpy as np
import pytest

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.cluster import (
    DegreeCorrectedTensorBlockModel,
    HigherOrderLloyd,
    diagnose,
)
from tesseral.cluster._chunks import ChunkSource
from tesseral.cluster._dense import DenseSource
from tesseral.cluster._source import Grouping
from tesseral.core.ties import symmetrize
from tesseral.datasets import make_block_tensor

da = pytest.importorskip("dask.array")
Model = DegreeCorrectedTensorBlockModel


def planted(**options):
    return make_block_tensor((30, 30, 30), 3, symmetric=True, random_state=0, **options)


def test_all_answers_are_those_of_the_dense_tensor():
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((7, 8, 9))
    groupings = [
        Grouping(labels=rng.integers(3, size=d), size=3, weights=rng.random(d)) for d in (7, 8, 9)
    ]
    dense = DenseSource(tensor)
    chunked = ChunkSource.observed("test", da.from_array(tensor, chunks=(3, 4, 5)))
    for mode in range(3):
        expected = dense.sums(groupings, range(3))[mode]
        np.testing.assert_allclose(chunked.sums(groupings, range(3))[mode], expected, atol=1e-12)
        vectors = chunked.vectors(mode, 2)
        np.testing.assert_allclose(abs(vectors), abs(dense.vectors(mode, 2)), atol=1e-10)
    assert chunked.squared_norm == pytest.approx(dense.squared_norm)


@pytest.mark.parametrize("symmetric", [True, [(0, 1)], False, "auto"], ids=str)
@pytest.mark.parametrize("family", ["normal", "binomial", "poisson"])
def test_a_chunked_tensor_is_fitted_as_the_dense_one(symmetric, family):
    truth = planted(family=family, slice_norm=0.4, noise=0.3, symmetric_noise=symmetric == "auto")
    dense = Model(3, symmetric=symmetric, family=family).fit(truth.tensor)
    array = da.from_array(truth.tensor, chunks=(11, 11, 30))
    chunked = Model(3, symmetric=symmetric, family=family).fit(array)
    assert chunked.symmetric_ == dense.symmetric_
    for ours, theirs in zip(chunked.labels_, dense.labels_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(chunked.core_, dense.core_, atol=1e-10)
    assert chunked.bic_ == pytest.approx(dense.bic_)
    assert chunked.score(array) == pytest.approx(dense.score(truth.tensor))


def test_peers_and_predictions_take_chunks_too():
    truth = planted(noise=0.2)
    array = da.from_array(truth.tensor, chunks=10)
    model = HigherOrderLloyd(3, symmetric=True, random_state=0).fit(array)
    dense = HigherOrderLloyd(3, symmetric=True, random_state=0).fit(truth.tensor)
    np.testing.assert_array_equal(model.labels_[0], dense.labels_[0])
    np.testing.assert_array_equal(model.predict(array[:5]), dense.labels_[0][:5])


@pytest.mark.parametrize(
    ("symmetric", "family"), [(True, "normal"), (False, "binomial"), ("auto", "normal")]
)
def test_missing_entries_are_left_out_as_in_a_dense_tensor(symmetric, family):
    truth = planted(family=family, slice_norm=0.7, noise=0.3, symmetric_noise=symmetric == "auto")
    drawn = np.random.default_rng(0).random(truth.tensor.shape)
    mask = (symmetrize(drawn, ((0, 1, 2),)) if symmetric == "auto" else drawn) > 0.3
    holes = np.where(mask, truth.tensor, np.nan)
    settings = {"symmetric": symmetric, "family": family}
    dense = Model(3, **settings).fit(holes)
    by_nan = Model(3, **settings).fit(da.from_array(holes, chunks=(16, 30, 30)))
    assert by_nan.symmetric_ == dense.symmetric_
    for ours, theirs in zip(by_nan.labels_, dense.labels_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(by_nan.core_, dense.core_, atol=1e-8)
    assert by_nan.bic_ == pytest.approx(dense.bic_)
    array = da.from_array(truth.tensor, chunks=(16, 30, 30))
    for given in (mask, da.from_array(mask, chunks=10)):
        assert by_nan.score(array, mask=given) == pytest.approx(dense.score(holes))


def test_what_chunks_cannot_hold_is_refused():
    array = da.from_array(np.array([[1.0, np.inf], [0.0, 1.0]]), chunks=1)
    with pytest.raises(ParameterError, match="the tensor contains infinity"):
        Model(2).fit(array)
    with pytest.raises(ParameterError, match="every entry of the tensor is missing"):
        Model(2).fit(np.nan * da.ones((3, 3)))
    with pytest.raises(ShapeError, match=r"the mask must have the shape \(3, 3\)"):
        Model(2).fit(da.ones((3, 3)), mask=np.ones((3, 2), dtype=bool))
    with pytest.raises(DtypeError, match="the mask must be boolean"):
        Model(2).fit(da.ones((3, 3)), mask=np.ones((3, 3)))
    with pytest.raises(DtypeError, match="must be real numbers"):
        Model(2).fit(da.ones((3, 3), dtype=complex))
    with pytest.raises(ParameterError, match="needs entries 0 and 1"):
        Model(2, family="binomial").fit(2 * da.ones((3, 3)))
    truth = planted(noise=0.2)
    model = Model(3, symmetric=True).fit(truth.tensor)
    with pytest.raises(ParameterError, match="needs an array in memory"):
        diagnose(model, da.from_array(truth.tensor, chunks=10))


WITHIN_LIMIT = r"""
import json
import re
from pathlib import Path

import dask.array as da
import numpy as np

from tesseral.cluster import DegreeCorrectedTensorBlockModel, clustering_error_rate

P, R = 224, 3
labels = np.arange(P) % R

def chunk(block_info=None):
    place = block_info[None]["array-location"]
    own = [labels[a:b] for a, b in place]
    mean = np.where((own[0][:, None, None] == own[1][:, None]) & (own[1][:, None] == own[2]), 1, .2)
    rng = np.random.default_rng(abs(hash(tuple(place))))
    mean += 0.5 * rng.standard_normal(mean.shape)
    return mean

def resident(name):
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])

sizes = ((56,) * 4, (28,) * 8, (28,) * 8)
tensor = da.map_blocks(chunk, chunks=sizes, dtype=float, meta=np.empty((0, 0, 0)))
small = tensor[:56, :56, :56]
DegreeCorrectedTensorBlockModel(R, symmetric=False).fit(small)  # what imports take is not counted
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
model = DegreeCorrectedTensorBlockModel(R, symmetric=False).fit(tensor)
print(json.dumps({
    "extra": resident("VmHWM") - before,
    "bytes": int(tensor.nbytes),
    "rate": clustering_error_rate(labels, model.labels_[0]),
}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tensor_of_four_times_the_limit_is_fitted_within_the_limit():
    result = subprocess.run(
        [sys.executable, "-c", WITHIN_LIMIT], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["extra"] <= found["bytes"] / 4
    assert found["rate"] == 0


def test_a_dask_cluster_does_the_work():
    distributed = pytest.importorskip("distributed")
    truth = planted(noise=0.2)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        model = Model(3, symmetric=False).fit(da.from_array(truth.tensor, chunks=15))
    dense = Model(3, symmetric=False).fit(truth.tensor)
    np.testing.assert_array_equal(model.labels_[0], dense.labels_[0])
