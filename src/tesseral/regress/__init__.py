"""Tensors explained by covariates of their modes, with prediction and uncertainty."""

from tesseral.regress._groups import group_rows
from tesseral.regress._inference import Bootstrap, Interval, WaldTests
from tesseral.regress._sample_mode import SampleModeRegressor
from tesseral.regress._select import Selection, Trial
from tesseral.regress._summary import Summary
from tesseral.regress._tucker_response import TensorResponseRegressor

__all__ = [
    "Bootstrap",
    "Interval",
    "SampleModeRegressor",
    "Selection",
    "Summary",
    "TensorResponseRegressor",
    "Trial",
    "WaldTests",
    "group_rows",
]
