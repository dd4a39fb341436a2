"""An input that several linear layers read and that is prepared once for all of them."""

from abc import abstractmethod
from threading import local
from typing import Any

from torch import Tensor, nn


class SharedInput(nn.Module):
    """Prepares a tensor once for ``readers`` layers that are called with it in turn.

    The layers of a site (query, key and value, say) are called one after the other with the
    same tensor object. The first call computes, the others get the same result, and after
    the last of them nothing is held.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers = 0
        # an object of its own: a module takes a microsecond to set an attribute
        self._now = _Held()

    def add_reader(self) -> None:
        """Count one more layer that will call this module."""
        self.readers += 1

    def forward(self, x: Tensor) -> Any:
        """Return :meth:`compute` of ``x``, computed by the first reader only."""
        now = self._now
        # the version counter tells whether the tensor was written to in between
        if now.x is not x or now.version != _version(x):
            now.result, now.left = self.compute(x), self.readers
            now.x, now.version = x, _version(x)
        result = now.result
        now.left -= 1
        if now.left <= 0:
            now.x = now.result = None
        return result

    @abstractmethod
    def compute(self, x: Tensor) -> Any:
        """Prepare the input."""


class _Held(local):
    """The tensor that a thread prepared last, and how many readers have not had the result."""

    def __init__(self) -> None:
        self.x: Tensor | None = None
        self.version = self.left = 0
        self.result: Any = None

    def __reduce__(self) -> tuple[type["_Held"], tuple[()]]:
        return _Held, ()  # a copy of a module prepares anew


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
