import numpy as np
import pytest

from support.frameworks import every_framework, to_numpy
from tesseral.datasets import make_tensor_response
from tesseral.regress._evaluate import evaluate
from tesseral.regress._setup import prepare
from tesseral.regress._start import spectral_start


@every_framework
@pytest.mark.parametrize("share", [0.0, 0.2], ids="{:g} missing".format)
def test_counts_of_zero_are_believed_to_be_as_small_as_the_fit_says(make, share):
    planted = make_tensor_response(
        (30,) * 3, 2, (8,) * 3, family="poisson", signal=6.0, random_state=0
    )
    y = planted.tensor.astype(float)
    y[np.random.default_rng(0).random(y.shape) < share] = np.nan
    setup = prepare("test", make(y), list(planted.covariates), family="poisson")
    working = make(np.log(y + 0.5))
    plain = spectral_start(setup.problem, (2, 2, 2), working)
    loose = spectral_start(setup.problem, (2, 2, 2), working, setup.tensor == 0)
    # the planted linear predictor of zeros goes down to -6, and log(1/2) stays far above
    errors = [
        np.abs(to_numpy(point.theta()) - planted.linear_predictor)[y == 0].mean()
        for point in (plain, loose)
    ]
    assert errors[1] < 0.8 * errors[0]
    assert evaluate(setup.problem, loose, None).objective > (
        evaluate(setup.problem, plain, None).objective
    )


def test_bounds_that_the_fit_keeps_change_nothing():
    planted = make_tensor_response((12,) * 3, 2, (4,) * 3, noise=0.0, random_state=0)
    setup = prepare("test", planted.tensor, list(planted.covariates), family="normal")
    loose = np.ones(planted.tensor.shape, dtype=bool)
    point = spectral_start(setup.problem, (2, 2, 2), planted.tensor, loose)
    np.testing.assert_allclose(point.theta(), planted.linear_predictor, atol=1e-10)
