"""The base of every estimator that takes a tensor.

A subclass stores its parameters in the constructor, unchanged, and lists what each may be
in ``_constraints``. Its ``fit`` first calls ``_check_parameters`` and ``_check_tensor``, and
after its loop ``_store_result``.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from sklearn.base import BaseEstimator

from tesseral.core._arrays import Array
from tesseral.core.constraints import Constraint, check_parameter
from tesseral.core.inputs import check_tensor
from tesseral.core.stopping import Result


class TensorEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Base of estimators whose data are one tensor; it has no sample axis of its own.

    Attributes
    ----------
    n_iter_ : int
        Number of iterations done.
    history_ : tuple of float
        The objective at the start, if known, and after each iteration.
    converged_ : bool
        Whether the stopping rule was met.
    """

    _constraints: ClassVar[Mapping[str, tuple[Constraint, ...]]] = {}
    """For each parameter of the constructor, the constraints of which it must meet one."""

    _allow_missing: ClassVar[bool] = False
    """Whether NaN stands for a missing entry."""

    def _check_parameters(self) -> None:
        """Raise ``ParameterError`` unless every parameter is one of those allowed."""
        for name, value in self.get_params(deep=False).items():
            check_parameter(type(self).__name__, name, value, *self._constraints[name])

    def _check_tensor(self, tensor: Any, mask: Any = None) -> tuple[Array, Array | None]:
        """Return the tensor as floating array, and its observed entries (None: all)."""
        return check_tensor(
            tensor, where=type(self).__name__, mask=mask, allow_missing=self._allow_missing
        )

    def _store_result(self, result: Result) -> None:
        """Set the learned attributes of an iteration; warn, from ``fit``, if it ran out."""
        self.n_iter_ = result.n_iter
        self.history_ = result.history
        self.converged_ = result.converged
        result.warn_unless_converged(type(self).__name__, stacklevel=3)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # matrices too: with tensors alone scikit-learn would run almost none of its checks
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = self._allow_missing
        return tags
