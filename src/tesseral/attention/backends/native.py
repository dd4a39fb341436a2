"""Attention by the native CPU kernels: two levels of tiles, or one read of the keys."""

import atexit
import sys
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from tesseral import _native
from tesseral.attention.native_plan import NativePlan, plan_native
from tesseral.attention.problem import AttentionArrays, AttentionProblem, state_problem
from tesseral.attention.registry import BACKENDS
from tesseral.attention.sequences import Sequences
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array, dtype_name, type_name
from tesseral.runtime import env
from tesseral.runtime.cpu import cache_sizes, cpu_target, cpu_threads
from tesseral.runtime.registry import YES, Verdict
from tesseral.runtime.threads import threads_beside_torch

_FORMATS = ("dense", "packed2", "packed4", "packed8")

_Axes: TypeAlias = tuple[int | None, int, int]
"""Which axes of an array are batch, head and row."""

_HEADS_FIRST: _Axes = (0, 1, 2)
_ROWS_FIRST: _Axes = (None, 1, 0)
_BLOCKS_FIRST: _Axes = (0, 2, 1)


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
        call = _Call(problem, arrays, _HEADS_FIRST, _HEADS_FIRST, plan)
        return call.run(call.native)

    def output(self, problem: AttentionProblem, arrays: AttentionArrays) -> Array:
        """Return output (batch, q_heads, q_len, value_dim) alone."""
        if is_torch_array(arrays.query):
            output = _run_plain(problem, arrays.query, arrays.key, arrays.value)
            if output is not None:
                return output
        return self.forward(problem, arrays)[0]

    def forward_sequences(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        sequences: Sequences,
        plan: NativePlan | None = None,
    ) -> tuple[Array, Array]:
        """Return output (total_q, q_heads, value_dim) and lse (total_q, q_heads)."""
        plan = plan or _plan_for(problem, arrays.query)
        paged = sequences.block_tables is not None
        call = _Call(problem, arrays, _ROWS_FIRST, _BLOCKS_FIRST if paged else _ROWS_FIRST, plan)
        native = call.native.copy()
        native.set_sequences(
            sequences.q_starts,
            sequences.q_lens,
            sequences.kv_starts,
            sequences.kv_lens,
            sequences.block_tables,
            arrays.key.shape[1] if paged else 0,
        )
        return call.run(native)


def _run_plain(problem: AttentionProblem, query: Any, key: Any, value: Any) -> Any:
    """Return the output of torch tensors without mask, bias or codes; ``None`` if it is no such.

    A token of a small model passes dozens of these calls, and each takes no longer than its
    keys are read only if Python does little: one look-up by how the arrays lie.
    """
    if problem.key_format != "dense" or problem.value_format != "dense":
        return None
    lie = query.stride(), key.stride(), value.stride()
    native = _plain_call(problem, lie, threads_beside_torch(), env.read("TESSERAL_CPU_TARGET"))
    if native is None:
        return None
    output = sys.modules["torch"].empty_like(query)
    addresses = query.data_ptr(), key.data_ptr(), value.data_ptr(), output.data_ptr()
    native.run(addresses[0], addresses[1], 0, 0, addresses[2], 0, 0, 0, 0, 0, addresses[3], 0)
    return output


@lru_cache(maxsize=2048)
def _plain_call(
    problem: AttentionProblem,
    lie: tuple[tuple[int, ...], ...],
    threads: int,
    asked: str | None,  # noqa: ARG001
) -> _native.AttentionCall | None:
    """Return the native call of tensors with these strides; ``None`` if it takes more to run it.

    ``asked`` is the instruction set that the environment names, on which the plan depends.
    """
    torch = sys.modules["torch"]
    dtype, shape = getattr(torch, problem.dtype), (problem.batch, problem.q_heads, problem.q_len)
    unlike = problem.mask != "none" or problem.sinks or problem.alibi
    if unlike or problem.value_dim != problem.head_dim or any(strides[-1] != 1 for strides in lie):
        return None
    query = torch.empty_strided((*shape, problem.head_dim), lie[0], dtype=dtype, device="meta")
    output = torch.empty_like(query).stride()
    if output != lie[0]:
        return None
    plan = plan_native(problem, cache_sizes(), cpu_target(), threads)
    q, k, v, out = ((strides, dtype) for strides in (*lie, output))
    given = (q, k, None, None, v, None, None, None, None, None, out, None)
    return _describe(problem, given, _TorchView, _HEADS_FIRST, _HEADS_FIRST, plan)


def decode_call(
    query: Array, key: PackedTensor, value: PackedTensor, scale: float
) -> tuple[_native.AttentionCall, NativePlan] | None:
    """Return the causal call of one query a sequence, and its plan, for native code to run.

    Arrays that lie as these do may take their places. ``None`` where another backend would run it.
    """
    arrays = AttentionArrays(query=query, key=key, value=value)
    problem = state_problem(arrays, is_causal=True, scale=scale, window=None, softcap=None)
    if BACKENDS.choose(problem).name != NativeBackend.name:
        return None
    plan = _plan_for(problem, query)
    call = _Call(problem, arrays, _HEADS_FIRST, _HEADS_FIRST, plan)
    return call.native, plan


def _plan_for(problem: AttentionProblem, query: Array) -> NativePlan:
    return plan_native(problem, cache_sizes(), cpu_target(), _threads(query))


def _threads(query: Array) -> int:
    """Return the threads to use: for torch's tensors, as many as torch uses."""
    return threads_beside_torch() if is_torch_array(query) else cpu_threads()


class _NumpyView:
    """How NumPy arrays tell where their numbers lie."""

    @staticmethod
    def address(array: Any) -> int:
        return int(array.__array_interface__["data"][0])

    @staticmethod
    def strides(array: Any) -> tuple[int, ...]:
        return tuple(array.strides)

    @staticmethod
    def unit(dtype: Any) -> int:  # noqa: ARG004
        return 1

    @staticmethod
    def has_rows(array: Any) -> bool:
        """Return whether columns are neighbours."""
        return array.strides[-1] == array.itemsize or array.shape[-1] == 1  # type: ignore[no-any-return]

    @staticmethod
    def contiguous(array: Any) -> Any:
        return np.ascontiguousarray(array)

    @staticmethod
    def new(like: Any, shape: tuple[int, ...]) -> Any:
        return np.empty(shape, like.dtype)

    @staticmethod
    def new_float32(like: Any, shape: tuple[int, ...]) -> Any:  # noqa: ARG004
        return np.empty(shape, np.float32)


class _TorchView:
    """The same of torch tensors."""

    @staticmethod
    def address(array: Any) -> int:
        return int(array.data_ptr())

    @staticmethod
    def strides(array: Any) -> tuple[int, ...]:
        return array.stride()  # type: ignore[no-any-return]

    @staticmethod
    def unit(dtype: Any) -> int:
        """Return the bytes of which strides are multiples."""
        return int(dtype.itemsize)

    @staticmethod
    def has_rows(array: Any) -> bool:
        return array.stride(-1) == 1 or array.shape[-1] == 1  # type: ignore[no-any-return]

    @staticmethod
    def contiguous(array: Any) -> Any:
        return array.contiguous()

    @staticmethod
    def new(like: Any, shape: tuple[int, ...]) -> Any:
        return like.new_empty(shape)

    @staticmethod
    def new_float32(like: Any, shape: tuple[int, ...]) -> Any:
        return like.new_empty(shape, dtype=sys.modules["torch"].float32)


_View: TypeAlias = type[_NumpyView] | type[_TorchView]


class _Call:
    """A call as the native code takes it; keeps alive the arrays whose addresses it holds.

    How the arrays lie is described once for all calls alike; each then brings its addresses.
    """

    def __init__(
        self,
        problem: AttentionProblem,
        arrays: AttentionArrays,
        axes: _Axes,
        key_axes: _Axes,
        plan: NativePlan,
    ) -> None:
        view = _TorchView if is_torch_array(arrays.query) else _NumpyView
        query = arrays.query
        given = _readable(problem, arrays, view)
        shape = (*query.shape[:-1], problem.value_dim)
        self.output = _new_output(query, shape, view, axes)
        self.lse = view.new_float32(query, shape[:-1])
        self.arrays = (*given, self.output, self.lse)
        lies = tuple([None if x is None else (view.strides(x), x.dtype) for x in self.arrays])
        self.view = view
        self.native = _describe(problem, lies, view, axes, key_axes, plan)

    def run(self, native: _native.AttentionCall) -> tuple[Array, Array]:
        """Run a native call for these arrays: ``self.native``, or a copy with its sequences."""
        address = self.view.address
        native.run(*[0 if x is None else address(x) for x in self.arrays])
        return self.output, self.lse


def _readable(
    problem: AttentionProblem, arrays: AttentionArrays, view: _View
) -> tuple[Array | None, ...]:
    """Return the arrays in the order in which the native code takes their addresses.

    Copies those whose columns are no neighbours, and those of types that it does not read.
    """
    biases: tuple[Array | None, ...] = (None, None, None)
    if problem.mask != "none" or problem.sinks or problem.alibi:
        biases = (
            _readable_mask(problem, arrays.mask),
            *(x if x is None else _float32(x, view) for x in (arrays.sinks, arrays.alibi_slopes)),
        )
    return (
        _with_rows(arrays.query, view),
        *_readable_rows(arrays.key, view),
        *_readable_rows(arrays.value, view),
        *biases,
    )


def _readable_rows(array: Array | PackedTensor, view: _View) -> tuple[Array | None, ...]:
    """Return keys or values, their scales and their offsets."""
    if not isinstance(array, PackedTensor):
        return _with_rows(array, view), None, None
    scale, offset = array.scale, array.offset
    offset_dtype = dtype_name(scale if offset is None else offset)
    if dtype_name(scale) not in _elements() or offset_dtype != dtype_name(scale):
        scale = _float32(scale, view)
        offset = None if offset is None else _float32(offset, view)
    return _with_rows(array.data, view), scale, offset


def _readable_mask(problem: AttentionProblem, mask: Array | None) -> Array | None:
    if mask is None:
        return None
    xp = array_namespace(mask)
    if problem.mask == "additive" and dtype_name(mask) not in _elements():
        mask = xp.astype(mask, xp.float32)
    shape = (problem.batch, problem.q_heads, problem.q_len, problem.kv_len)
    return xp.broadcast_to(mask, shape)


def _with_rows(array: Array, view: _View) -> Array:
    """Return an array whose columns are neighbours: this one, or a copy."""
    return array if view.has_rows(array) else view.contiguous(array)


def _float32(array: Array, view: _View) -> Array:
    xp = array_namespace(array)
    return view.contiguous(xp.astype(array, xp.float32))


def _new_output(query: Array, shape: tuple[int, ...], view: _View, axes: _Axes) -> Array:
    """Return a new array whose axes lie in memory as those of the query do."""
    if axes is _HEADS_FIRST and shape[2] > 1:
        strides = view.strides(query)
        if strides[1] < strides[2]:
            batch, heads, length, width = shape
            return view.new(query, (batch, length, heads, width)).swapaxes(1, 2)
    return view.new(query, shape)


@lru_cache(maxsize=2048)
def _describe(
    problem: AttentionProblem,
    lies: tuple[tuple[tuple[int, ...], Any] | None, ...],
    view: _View,
    axes: _Axes,
    key_axes: _Axes,
    plan: NativePlan,
) -> _native.AttentionCall:
    """Return a native call for arrays that lie so, (strides, dtype) each, of one batch."""
    query, key, key_scale, key_offset, value, value_scale, value_offset, *others = lies
    mask, _, slopes, output, lse = others

    def rows(lie: Any, axes: _Axes) -> _native.Rows:
        if lie is None:
            return _native.Rows(0, 0, 0, 0)
        unit = view.unit(lie[1])
        return _native.Rows(0, *(0 if axis is None else lie[0][axis] * unit for axis in axes))

    def key_value(form: str, width: int, lie: Any, scale: Any, offset: Any) -> Any:
        name = problem.dtype if form == "dense" else form.replace("packed", "bits")
        described = _native.KeyValueRows(getattr(_native.Element, name), width, rows(lie, key_axes))
        if scale is not None:
            described.scale_element = _elements()[type_name(scale[1])]
            described.scale, described.offset = rows(scale, key_axes), rows(offset, key_axes)
        return described

    native = _native.AttentionCall()
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
    native.query, native.output = rows(query, axes), rows(output, axes)
    native.lse = rows(lse, axes)
    native.key = key_value(problem.key_format, problem.head_dim, key, key_scale, key_offset)
    native.value = key_value(
        problem.value_format, problem.value_dim, value, value_scale, value_offset
    )
    if slopes is not None:
        native.slopes_sequence = problem.q_heads if len(slopes[0]) == 2 else 0
    if mask is not None:
        element = (
            _native.Element.boolean
            if problem.mask == "boolean"
            else _elements()[type_name(mask[1])]
        )
        column = mask[0][-1] * view.unit(mask[1])
        native.mask = _native.DenseMask(element, rows(mask, _HEADS_FIRST), column)
    native.strip_rows, native.key_block = plan.strip_rows, plan.k_tile
    native.split_keys, native.bf16_dot = plan.split_keys, plan.bf16_dot
    native.stream_rows = plan.strip_rows if plan.kernel == "streamed" else 0
    native.set_target(plan.target, plan.threads)
    if axes is _HEADS_FIRST:
        native.set_batch(problem.batch, problem.q_len, problem.kv_len)
    return native


# what outlives the interpreter, nanobind reports as leaked
atexit.register(_describe.cache_clear)
atexit.register(_plain_call.cache_clear)


@cache
def _elements() -> dict[str, Any]:
    return {name: getattr(_native.Element, name) for name in ("float32", "bfloat16", "float16")}
