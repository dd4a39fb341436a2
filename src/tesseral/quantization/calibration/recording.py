"""A function of tensors on CUDA, recorded once and replayed."""

import logging
from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

_WARM_UP = 3  # calls before one is recorded: libraries set themselves up in the first ones
_RECORDING = Lock()  # torch gives memory back before it records, and may not while another does
_LOG = logging.getLogger(__name__)


class Recording:
    """Runs a function as a CUDA graph: its hundreds of kernels are launched by one call.

    The first calls run as they are, and so do those on tensors of other shapes than the one
    that is recorded. If the function cannot be recorded, all calls do.

    Parameters
    ----------
    function : callable
        Takes tensors and returns one. Its effects on other tensors must be in place, at the
        same addresses every time, and it may not wait for the device.
    device : torch.device
        A CUDA device.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function = function
        # autograd remembers on which stream a parameter was first used: always the same here
        self._stream = torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._held: list[Tensor] = []
        self._result: Tensor | None = None
        self._until_recorded = _WARM_UP

    def run(self, tensors: list[Tensor]) -> Tensor:
        """Return the function's result on some tensors."""
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            if self._until_recorded == 0:
                self._until_recorded = -1
                self._record(tensors)
            result = self._run(tensors)
        outer.wait_stream(self._stream)
        return result

    def _run(self, tensors: list[Tensor]) -> Tensor:
        if self._graph is None or self._result is None or not self._fits(tensors):
            self._until_recorded -= 1
            return self._function(*tensors)
        for held, tensor in zip(self._held, tensors, strict=True):
            held.copy_(tensor)
        self._graph.replay()
        return self._result.clone()

    def _fits(self, tensors: list[Tensor]) -> bool:
        return [t.shape for t in tensors] == [t.shape for t in self._held]

    def _record(self, tensors: list[Tensor]) -> None:
        held, graph = [t.clone() for t in tensors], torch.cuda.CUDAGraph()
        try:
            with (
                _RECORDING,
                torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = self._function(*held)
        # whatever library refuses to be recorded, the function itself still runs
        except RuntimeError as error:
            _LOG.warning("calibration steps are launched one by one: %s", error)
            return
        self._graph, self._held, self._result = graph, held, result
