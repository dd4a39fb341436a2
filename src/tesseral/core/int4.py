"""Linear layers over packed 4-bit weights and int8 activations; integer sums are exact."""

from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np

from tesseral import _native
from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import address, dtype_name
from tesseral.core.kernel_arrays import check_dense, check_rows
from tesseral.core.packed import PackedTensor
from tesseral.core.packing import packed_length
from tesseral.runtime.cpu import cpu_target, cpu_threads

_DLPACK_CPU = 1


def linear_int4(
    activations: Any,
    weight: Any,
    *,
    out: Any = None,
    threads: int | None = None,
    target: str | None = None,
) -> Any:
    """Multiply int8 activations with the transpose of a packed 4-bit weight.

    ``out[i, j] = sum_t activations[i, t] * code(weight)[j, t]``, exact for every int8 and
    every 4-bit value. Nothing is copied; the weight is unpacked piece by piece in cache.

    Parameters
    ----------
    activations : int8 array of shape (m, k)
        In C order, on the CPU; ``1 <= k <= 2^20``. NumPy, torch, or anything that exports DLPack.
    weight : uint8 array of shape (n, ceil(k / 2))
        Signed 4-bit codes in the layout of :mod:`tesseral.core.packing`, in C order; the last
        nibble of a row of odd length is ignored.
    out : int32 array of shape (m, n), optional
        Written and returned. By default a new array of the framework of ``activations``.
    threads : int, optional
        Threads to use at most; see :func:`tesseral.runtime.cpu.cpu_threads`. A small product
        uses one.
    target : str, optional
        Instruction set to use or fail; see :func:`tesseral.runtime.cpu.cpu_target`.

    Returns
    -------
    int32 array of shape (m, n)
        The same whatever the threads and the target.

    Raises
    ------
    DtypeError, ShapeError, ParameterError
        If types, shapes, memory order or device do not fit, or the number of threads or the
        target's name is none.
    BackendError
        If this machine cannot run the target.

    Examples
    --------
    >>> import numpy as np
    >>> from tesseral.core.packing import pack
    >>> codes = np.array([[1, -8, 7], [0, 2, 0]], dtype=np.int8)
    >>> linear_int4(np.array([[1, 2, 3]], dtype=np.int8), pack(codes, bits=4))
    array([[6, 4]], dtype=int32)
    """
    rows = _matrix("activations", activations, np.int8)
    packed = _matrix("weight", weight, np.uint8)
    (m, k), (n, n_bytes) = rows.shape, packed.shape
    if not 1 <= k <= _native.LINEAR_INT4_MAX_K:
        raise ShapeError(
            f"linear_int4: activations of shape {(m, k)} must have 1 to "
            f"{_native.LINEAR_INT4_MAX_K} columns; a longer sum may not fit int32."
        )
    if n_bytes != packed_length(k, bits=4):
        raise ShapeError(
            f"linear_int4: weight of shape {(n, n_bytes)} does not fit activations of shape "
            f"{(m, k)}; {k} codes take {packed_length(k, bits=4)} bytes a row."
        )
    if out is None:
        out = _empty_like(activations, (m, n))
    elif _matrix("out", out, np.int32).shape != (m, n):
        raise ShapeError(f"linear_int4: out has shape {tuple(out.shape)}, needs {(m, n)}.")
    _native.linear_int4(rows, packed, out, cpu_threads(threads), cpu_target(target))
    return out


def _matrix(name: str, array: Any, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """View a matrix as NumPy without copying, or say what is wrong with it."""
    if not hasattr(array, "__dlpack__"):
        raise DtypeError(f"linear_int4: {name} must be an array, got {type(array).__name__}.")
    device = array.__dlpack_device__()
    if device[0] != _DLPACK_CPU:
        raise ParameterError(f"linear_int4: {name} must be on the CPU, got DLPack device {device}.")
    view = array if isinstance(array, np.ndarray) else np.from_dlpack(array)
    if view.dtype != dtype:
        raise DtypeError(f"linear_int4: {name} must be {np.dtype(dtype)}, got {view.dtype}.")
    if view.ndim != 2:
        raise ShapeError(f"linear_int4: {name} must be a matrix, got shape {view.shape}.")
    if not view.flags.c_contiguous:
        raise ShapeError(
            f"linear_int4: {name} of shape {view.shape} must be contiguous in C order, got "
            f"strides {view.strides} in bytes; copy it first."
        )
    return view


def _empty_like(activations: Any, shape: tuple[int, int]) -> Any:
    xp = array_api_compat.array_namespace(activations)
    return xp.empty(shape, dtype=xp.int32)


class Int4Linears:
    """Linear layers over packed 4-bit weights that read the same int8 rows, run as one call.

    ``out = (sums * scale) * weight_scale + bias`` with exact integer sums, each step rounded to
    float32; with a scale for every group of a row, ``scale * sum(weight_scale * sums) + bias``.

    Parameters
    ----------
    weights : sequence of PackedTensor of shape (out_features_i, in_features)
        Signed 4-bit codes in C order with float32 scales, all with the same number of scales a
        row; see :func:`takes_groups`. They are kept, and neither copied nor repacked.
    biases : sequence of float32 arrays of shape (out_features_i,), or None
        One for each weight.

    Attributes
    ----------
    addresses : list of (int, int, int)
        Where codes, scale and bias of each weight lie; 0 for no bias.

    Raises
    ------
    DtypeError, ShapeError
        If types, shapes or memory order do not fit.
    """

    def __init__(self, weights: Sequence[PackedTensor], biases: Sequence[Any]) -> None:
        self._arrays = [(w.data, w.scale, b) for w, b in zip(weights, biases, strict=True)]
        self.in_features, self.groups = weights[0].length, weights[0].scale.shape[-1]
        for weight, bias in zip(weights, biases, strict=True):
            self._check_weight(weight, bias)
        self.out_features = [int(weight.data.shape[0]) for weight in weights]
        self.addresses = [
            (address(data), address(scale), 0 if bias is None else address(bias))
            for data, scale, bias in self._arrays
        ]

    def _check_weight(self, weight: PackedTensor, bias: Any) -> None:
        shape = (*weight.data.shape[:-1], weight.length)
        if (
            len(shape) != 2
            or weight.bits != 4
            or weight.length != self.in_features
            or weight.scale.shape[-1] != self.groups
            or not takes_groups(self.in_features, self.groups)
        ):
            raise ShapeError(
                f"Int4Linears: weights must be matrices of 4-bit codes with {self.in_features} "
                f"columns and {self.groups} scales a row that the kernel takes, got one of shape "
                f"{shape}, {weight.bits} bits and {weight.scale.shape[-1]} scales a row."
            )
        n, n_bytes = weight.data.shape
        check_dense("weight", weight.data, "uint8", n, n_bytes, "Int4Linears")
        check_dense("weight_scale", weight.scale, "float32", n, self.groups, "Int4Linears")
        if bias is not None:
            check_dense("bias", bias, "float32", 1, n, "Int4Linears")

    def reads(self, arrays: Sequence[Sequence[Any]]) -> bool:
        """Whether these codes, scales and biases, first of each, lie where those it has lie."""
        return self.addresses == [
            (address(given[0]), address(given[1]), 0 if given[2] is None else address(given[2]))
            for given in arrays
        ]

    def __call__(
        self,
        codes: Any,
        scale: Any,
        outs: Sequence[Any],
        *,
        threads: int | None = None,
        target: str | None = None,
    ) -> None:
        """Fill ``outs`` with the products of every weight.

        Parameters
        ----------
        codes : int8 array of shape (m, in_features)
            Rows may be farther apart than they are long; a distance that is a multiple of 512
            bytes, or rows whose length is no multiple of 4, cost a copy.
        scale : float32 array of shape (m, 1)
        outs : sequence of float32 or bfloat16 arrays of shape (m, out_features_i)
            All of one type, in C order.
        threads, target : optional
            As for :func:`linear_int4`.

        Raises
        ------
        DtypeError, ShapeError, ParameterError, BackendError
            If arrays, threads or target do not fit.
        """
        m = int(codes.shape[0])
        stride = check_rows("codes", codes, "int8", (m, self.in_features), "Int4Linears")
        check_dense("scale", scale, "float32", m, 1, "Int4Linears")
        kind = dtype_name(outs[0])
        if kind not in ("float32", "bfloat16"):
            raise DtypeError(f"Int4Linears: out must be float32 or bfloat16, got {kind}.")
        rows = []
        for row, n, out in zip(self.addresses, self.out_features, outs, strict=True):
            check_dense("out", out, kind, m, n, "Int4Linears")
            rows.append((*row, address(out), n))
        _native.linear_int4_floats(
            address(codes),
            address(scale),
            m,
            self.in_features,
            stride,
            self.in_features // self.groups,
            kind == "bfloat16",
            rows,
            cpu_threads(threads),
            cpu_target(target),
        )


def takes_groups(in_features: int, groups: int) -> bool:
    """Whether the kernel takes so many scales a row: one, or groups of 16, 32, 64 or n * 128."""
    return (
        in_features >= 1
        and groups >= 1
        and in_features % groups == 0
        and _native.linear_int4_takes_groups(in_features, in_features // groups)
    )
