"""Tensors explained by covariates of their modes, with prediction and uncertainty."""

from tesseral.regress._tucker_response import TensorResponseRegressor

__all__ = ["TensorResponseRegressor"]
