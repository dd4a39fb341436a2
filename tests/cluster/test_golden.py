"""Agreement with stored outputs of the R package dTBM; golden/README.md says what they are."""

from pathlib import Path

import numpy as np
import pytest

from tesseral.cluster import DegreeCorrectedTensorBlockModel, clustering_error_rate
from tesseral.datasets import load_peru

GOLDEN = Path(__file__).with_name("golden")
CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        case = dict(file)
    case.setdefault("Y", load_peru().tensor)
    return case


def fit(case, r=None, **options):
    order = case["Y"].ndim
    counts = [int(x) for x in (case["r"] if r is None else r)[:order]]
    model = DegreeCorrectedTensorBlockModel(
        counts, symmetric=not case["asymm"], max_iter=int(case["max_iter"]), **options
    )
    return model.fit(case["Y"])


def cer(case, name, labels):
    return [clustering_error_rate(case[f"{name}_mode{k + 1}"], z) for k, z in enumerate(labels)]


@pytest.mark.parametrize("name", CASES)
def test_start_and_final_labels_are_those_of_r(name):
    case = load(name)
    model = fit(case, tied="first")
    assert cer(case, "z0", model.start_labels_) == [0.0] * case["Y"].ndim
    assert cer(case, "z", model.labels_) == [0.0] * case["Y"].ndim


@pytest.mark.parametrize("name", CASES)
def test_block_means_and_degrees_are_those_of_r(name):
    case = load(name)
    model = fit(case, tied="first")
    core = case["core_hat"]
    for mode, labels in enumerate(model.labels_):
        # the same cluster has another number in R
        theirs = case[f"z_mode{mode + 1}"] - 1
        of_ours = [theirs[labels == a][0] for a in range(model.n_clusters_[mode])]
        core = np.take(core, of_ours, axis=mode)
        expected = case[f"theta_hat_mode{mode + 1}"]
        np.testing.assert_allclose(model.degrees_[mode], expected, rtol=1e-9)
    np.testing.assert_allclose(model.core_, core, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if "bic" in load(name)])
@pytest.mark.filterwarnings("ignore::tesseral._errors.ConvergenceWarning")
def test_the_criterion_is_that_of_r(name):
    case = load(name)
    for r, expected in list(zip(case["bic_range"], case["bic"], strict=True))[:4]:
        assert fit(case, r, tied="first").bic_ == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::tesseral._errors.ConvergenceWarning")
def test_pooling_is_no_further_from_the_truth_than_r(name):
    case = load(name)
    ours = cer(case, "true_z", fit(case, tied="pool").labels_)
    assert (np.array(ours) <= case["cer_final"] + 0.005).all()


def test_peru_comes_out_the_same_for_every_seed():
    peru = load_peru()
    found = {
        tuple(DegreeCorrectedTensorBlockModel(5, random_state=seed).fit(peru.tensor).labels_[0])
        for seed in range(20)
    }
    assert len(found) == 1
    assert clustering_error_rate(peru.party, list(found.pop())) <= 0.1156
