"""Attention by the native CPU kernels: two levels of tiles, or one read of the keys."""

from functools import cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from tesseral import _native
from tesseral.attention.native_plan import NativePlan, plan_native
from tesseral.attention.problem import AttentionArrays, AttentionProblem, dtype_name
from tesseral.attention.sequences import Sequences
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array
from tesseral.runtime.cpu import cache_sizes, cpu_target, cpu_threads
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.threads import threads_beside_torch

_FORMATS = ("dense", "packed2", "packed4", "packed8")

_HEADS_FIRST = (0, 1, 2)  # axes (batch, head, row) of an array (batch, heads, length, width)


class NativeBackend:
    """Exact attention in C++, for the instruction set that this machine has.

    Works in float32 and rounds the output once; where the chip multiplies bfloat16 pairs
    faster, bfloat16 weights are rounded before they meet the values, as in a model that
    computes in bfloat16. The result depends on the number of threads only through the plan.
    """

    name = "native"

    def supports(self, problem: AttentionProblem) -> Verdict:
        """Accept float32, bfloat16 and float16 on the CPU, of head dimensions up to 256."""
        if problem.device != "cpu":
            return Verdict(False, f"runs on the CPU, not on {problem.device}")
        if problem.dtype == "float64":
            return Verdict(False, "computes in float32, not in float64")
        if max(problem.head_dim, problem.value_dim) > _native.ATTENTION_MAX_DIM:
            return Verdict(False, f"takes head dimensions up to {_native.ATTENTION_MAX_DIM}")
        for side in (problem.key_format, problem.value_format):
            if side not in _FORMATS:
                return Verdict(False, f"reads codes with one scale a row, not {side}")
        return YES

    def plan(self, problem: AttentionProblem) -> NativePlan:
        """Return the tiles that :meth:`forward` takes by default."""
        return plan_native(problem, cache_sizes(), cpu_target(), cpu_threads())

    def forward(
        self, problem: AttentionProblem, arrays: AttentionArrays, plan: NativePlan | None = None
    ) -> tuple[Array, Array]:
        """Return output (batch, q_heads, q_len, value_dim) and lse (batch, q_heads, q_len)."""
        plan = plan or _plan_for(problem, arrays.query)
        call = _Call(problem, arrays, _HEADS_FIRST)
        call.native.set_batch(problem.batch, problem.q_len, problem.kv_len)
        return call.run(plan)

    def forward_sequences(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        sequences: Sequences,
        plan: NativePlan | None = None,
    ) -> tuple[Array, Array]:
        """Return output (total_q, q_heads, value_dim) and lse (total_q, q_heads)."""
        plan = plan or _plan_for(problem, arrays.query)
        rows_first = (None, 1, 0)
        paged = sequences.block_tables is not None
        call = _Call(problem, arrays, rows_first, (0, 2, 1) if paged else rows_first)
        call.native.set_sequences(
            sequences.q_starts,
            sequences.q_lens,
            sequences.kv_starts,
            sequences.kv_lens,
            sequences.block_tables,
            arrays.key.shape[1] if paged else 0,
        )
        return call.run(plan)


def _plan_for(problem: AttentionProblem, query: Array) -> NativePlan:
    return plan_native(problem, cache_sizes(), cpu_target(), _threads(query))


def _threads(query: Array) -> int:
    """Return the threads to use: for torch's tensors, as many as torch uses."""
    return threads_beside_torch() if is_torch_array(query) else cpu_threads()


class _NumpyView:
    """How NumPy arrays tell where their numbers lie; strides in bytes."""

    @staticmethod
    def address(array: Any) -> int:
        return int(array.__array_interface__["data"][0])

    @staticmethod
    def strides(array: Any) -> tuple[int, ...]:
        return tuple(array.strides)

    @staticmethod
    def itemsize(array: Any) -> int:
        return int(array.itemsize)

    @staticmethod
    def contiguous(array: Any) -> Any:
        return np.ascontiguousarray(array)


class _TorchView:
    """The same of torch tensors."""

    @staticmethod
    def address(array: Any) -> int:
        return int(array.data_ptr())

    @staticmethod
    def strides(array: Any) -> tuple[int, ...]:
        size = array.element_size()
        return tuple([step * size for step in array.stride()])

    @staticmethod
    def itemsize(array: Any) -> int:
        return int(array.element_size())

    @staticmethod
    def contiguous(array: Any) -> Any:
        return array.contiguous()


class _Call:
    """A call as the native code takes it; keeps alive the arrays whose addresses it holds."""

    def __init__(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        axes: tuple[int | None, ...],
        key_axes: tuple[int | None, ...] | None = None,
    ) -> None:
        self.xp = array_namespace(arrays.query)
        self.view = _TorchView if is_torch_array(arrays.query) else _NumpyView
        self.alive: list[Array] = []
        self.problem = problem
        native = self.native = _native.AttentionCall()
        native.element = _elements()[problem.dtype]
        native.q_heads, native.kv_heads = problem.q_heads, problem.kv_heads
        native.scale, native.softcap = problem.scale, problem.softcap or 0.0
        left, right = problem.window or (-1, -1)
        if left >= 0:
            native.left = left
        if problem.causal:
            native.right = 0
        elif right >= 0:
            native.right = right
        native.query = self._rows(arrays.query, axes)
        native.key = self._key_value(arrays.key, key_axes or axes)
        native.value = self._key_value(arrays.value, key_axes or axes)
        self._set_biases(arrays)
        self.output, self.lse = self._results(arrays.query, axes)
        native.output = self._rows(self.output, axes)
        native.lse = self._rows(self.lse[..., None], axes)

    def run(self, plan: NativePlan) -> tuple[Array, Array]:
        native = self.native
        native.strip_rows, native.key_block = plan.strip_rows, plan.k_tile
        native.split_keys, native.bf16_dot = plan.split_keys, plan.bf16_dot
        native.stream_rows = plan.strip_rows if plan.kernel == "streamed" else 0
        native.run(plan.threads, plan.target)
        return self.output, self.lse

    def _results(self, query: Array, axes: tuple[int | None, ...]) -> tuple[Array, Array]:
        """Return new arrays; the output's axes lie in memory as those of the query do."""
        xp, shape = self.xp, (*query.shape[:-1], self.problem.value_dim)
        lse = xp.empty(shape[:-1], dtype=xp.float32)
        strides = self.view.strides(query)
        if axes is _HEADS_FIRST and shape[2] > 1 and strides[1] < strides[2]:
            output = xp.empty((shape[0], shape[2], shape[1], shape[3]), dtype=query.dtype)
            return xp.permute_dims(output, (0, 2, 1, 3)), lse
        return xp.empty(shape, dtype=query.dtype), lse

    def _set_biases(self, arrays: AttentionArrays) -> None:
        xp, problem = self.xp, self.problem
        if arrays.sinks is not None:
            self.native.set_sinks(self.view.address(self._float32(arrays.sinks)))
        if arrays.alibi_slopes is not None:
            slopes = self._float32(arrays.alibi_slopes)
            step = problem.q_heads if slopes.ndim == 2 else 0
            self.native.set_slopes(self.view.address(slopes), step)
        if arrays.mask is None:
            return
        mask = arrays.mask
        if problem.mask == "additive" and dtype_name(mask) not in _elements():
            mask = xp.astype(mask, xp.float32)
        shape = (problem.batch, problem.q_heads, problem.q_len, problem.kv_len)
        mask = self._keep(xp.broadcast_to(mask, shape))
        element = (
            _native.Element.boolean if problem.mask == "boolean" else _elements()[dtype_name(mask)]
        )
        *steps, column = self.view.strides(mask)
        rows = _native.Rows(self.view.address(mask), *steps)
        self.native.mask = _native.DenseMask(element, rows, column)

    def _key_value(self, array: Array | PackedTensor, axes: tuple[int | None, ...]) -> Any:
        if not isinstance(array, PackedTensor):
            rows = self._rows(array, axes)
            return _native.KeyValueRows(self.native.element, array.shape[-1], rows)
        codes = _native.KeyValueRows(
            getattr(_native.Element, f"bits{array.bits}"),
            array.length,
            self._rows(array.data, axes),
        )
        scale, offset = array.scale, array.offset
        offset_dtype = dtype_name(scale if offset is None else offset)
        if dtype_name(scale) not in _elements() or offset_dtype != dtype_name(scale):
            scale = self.xp.astype(scale, self.xp.float32)
            offset = None if offset is None else self.xp.astype(offset, self.xp.float32)
        codes.scale_element = _elements()[dtype_name(scale)]
        codes.scale = self._rows(scale, axes)
        if offset is not None:
            codes.offset = self._rows(offset, axes)
        return codes

    def _rows(self, array: Array, axes: tuple[int | None, ...]) -> Any:
        """Return where the rows of an array lie; copies one whose columns are no neighbours."""
        strides = self.view.strides(array)
        if array.shape[-1] > 1 and strides[-1] != self.view.itemsize(array):
            array = self.view.contiguous(array)
            strides = self.view.strides(array)
        self._keep(array)
        steps = [0 if axis is None else strides[axis] for axis in axes]
        return _native.Rows(self.view.address(array), *steps)

    def _float32(self, array: Array) -> Array:
        return self._keep(self.view.contiguous(self.xp.astype(array, self.xp.float32)))

    def _keep(self, array: Array) -> Array:
        self.alive.append(array)
        return array


@cache
def _elements() -> dict[str, Any]:
    return {name: getattr(_native.Element, name) for name in ("float32", "bfloat16", "float16")}
