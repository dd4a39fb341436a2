"""How linear layers that read the same floating rows are called: checks, and one kernel."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from tesseral._errors import DtypeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.kernel_arrays import check_dense, check_rows
from tesseral.runtime.cpu import cpu_target, cpu_threads

OUT_TYPES = ("float32", "bfloat16")
"""Types that outputs may have."""


class RowsCall(NamedTuple):
    """What a kernel is told of a call whose arrays fit.

    Attributes
    ----------
    rows : tuple of (str, int, int, int)
        Type, address, distance and number of the rows.
    outs : list of int
        Where outputs lie.
    short : bool
        Whether these are bfloat16.
    threads : int
    target : str
    """

    rows: tuple[str, int, int, int]
    outs: list[int]
    short: bool
    threads: int
    target: str


class RowLayers(ABC):
    """Linear layers over packed weights that read the same floating rows, in one call.

    Attributes
    ----------
    row_types : tuple of str
        Types that rows may have.
    in_features : int
    out_features : sequence of int
        Of each layer.
    """

    row_types: ClassVar[tuple[str, ...]]
    in_features: int
    out_features: Sequence[int]

    def __call__(
        self,
        rows: Any,
        outs: Sequence[Any],
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``outs`` with the products of every weight.

        Parameters
        ----------
        rows : array of shape (m, in_features)
            Of one of :attr:`row_types`, on the CPU; elements of a row are neighbours.
        outs : sequence of float32 or bfloat16 arrays of shape (..., out_features_i)
            All of one type, in C order, with m rows.
        threads, target : optional
            As for :func:`~tesseral.core.int4.linear_int4`.

        Raises
        ------
        DtypeError, ShapeError, ParameterError, BackendError
            If arrays, threads or target do not fit.
        """
        element, kind, name = dtype_name(rows), dtype_name(outs[0]), type(self).__name__
        if element not in self.row_types or kind not in OUT_TYPES:
            raise DtypeError(
                f"{name}: rows must be one of {self.row_types} and outs one of {OUT_TYPES}, got "
                f"{element} and {kind}."
            )
        m = rows.shape[0]
        stride = check_rows("rows", rows, element, (m, self.in_features), name)
        for out, n in zip(outs, self.out_features, strict=True):
            check_dense("out", out, kind, m, n, name)
        self.run(
            RowsCall(
                rows=(element, address(rows), stride, m),
                outs=[address(out) for out in outs],
                short=kind == "bfloat16",
                threads=cpu_threads(threads),
                target=cpu_target(target),
            )
        )

    @abstractmethod
    def run(self, call: RowsCall) -> None:
        """Call the kernel; nothing is checked, and what does not fit is overwritten."""
