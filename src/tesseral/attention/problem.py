"""What one attention call asks for, stated without its arrays."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.attention.mask import MaskKind, Window, check_dense_mask, check_window
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array, Namespace, array_namespace, dtype_name

T = TypeVar("T")

DTYPES = ("float16", "bfloat16", "float32", "float64")

REMEMBERED = 2048
"""Checked calls that are remembered, so that a repeated one costs little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProblem:
    """One attention call: sizes, types and rules. Hashable and printable.

    Attributes
    ----------
    batch, q_len, kv_len, q_heads, kv_heads, head_dim, value_dim : int
        Sizes of query (batch, q_heads, q_len, head_dim), key (batch, kv_heads, kv_len,
        head_dim) and value (batch, kv_heads, kv_len, value_dim). Where sequences of several
        lengths are packed, their number and the lengths of the longest.
    dtype : {"float16", "bfloat16", "float32", "float64"}
        Type of the query, of dense keys and values, and of the output.
    device : str
        Device of all arrays, ``"cpu"`` or such as ``"cuda:0"``.
    key_format, value_format : str
        ``"dense"``, or ``"packed2"``, ``"packed4"``, ``"packed8"`` for a
        :class:`~tesseral.core.PackedTensor` of that many bits; ``"packed4x2"`` if it has two
        scales a row.
    causal : bool
        Hide the keys after the diagonal, which ends at the last query and key.
    window : (int, int) or None
        Hide keys further from the diagonal than this; -1 = unbounded.
    scale : float
        Factor of the scores.
    softcap : float or None
        Bound on the scaled scores.
    mask : {"none", "boolean", "additive"}
        Kind of the dense mask.
    alibi, sinks : bool
        Whether there are slopes of a linear bias, and logits of attention sinks.
    """

    batch: int
    q_len: int
    kv_len: int
    q_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    device: str
    key_format: str = "dense"
    value_format: str = "dense"
    causal: bool = False
    window: Window | None = None
    scale: float
    softcap: float | None = None
    mask: MaskKind = "none"
    alibi: bool = False
    sinks: bool = False
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values = tuple(getattr(self, f.name) for f in fields(self) if f.compare)
        object.__setattr__(self, "_hash", hash(values))

    def __hash__(self) -> int:
        """Return the hash, found once: what is known of a problem is looked up at every call."""
        return self._hash

    @property
    def group(self) -> int:
        """Number of query heads that share a key head."""
        return self.q_heads // self.kv_heads


@dataclass(slots=True, kw_only=True, eq=False)  # frozen it would take three times as long to make
class AttentionArrays:
    """The arrays of a call, as the caller gave them; see :func:`tesseral.attention.attention`.

    Nobody changes one that is made.
    """

    query: Array
    key: Array | PackedTensor
    value: Array | PackedTensor
    mask: Array | None = None
    sinks: Array | None = None
    alibi_slopes: Array | None = None


class Rules(TypedDict):
    """What may be seen and how it is scored, as the caller gave it; see :func:`attention`."""

    is_causal: bool
    scale: float | None
    window: Window | None
    softcap: float | None


def state_problem(arrays: AttentionArrays, **rules: Unpack[Rules]) -> AttentionProblem:
    """Check a dense call and state it as a problem.

    Raises
    ------
    ShapeError
        If the shapes of the arrays do not belong together.
    DtypeError
        If types, frameworks or devices mix, or one is not supported.
    ParameterError
        If ``scale``, ``window`` or ``softcap`` is not a value it may have.
    """

    def state() -> AttentionProblem:
        check_kinds("attention", arrays)
        return make_problem("attention", arrays, _check_shapes("attention", arrays), rules)

    return remembered(signature(arrays, *rule_key(rules)), state)


def remembered(key: tuple[Any, ...] | None, find: Callable[[], T]) -> T:
    """Return what ``find`` returned the last time that ``key`` was given; it may not be ``None``.

    Parameters
    ----------
    key : tuple or None
        All that the result depends on. ``None``, or what cannot be hashed, is not remembered.
    find : callable
        What it raises is raised, and not remembered.
    """
    try:
        known: T | None = _KNOWN.get(key)
    except TypeError:
        key = known = None
    if known is None:
        known = find()
        if len(_KNOWN) >= REMEMBERED:
            _KNOWN.clear()
        if key is not None:
            _KNOWN[key] = known
    return known


_KNOWN: dict[tuple[Any, ...] | None, Any] = {}


def signature(arrays: AttentionArrays, *more: object) -> tuple[Any, ...] | None:
    """Return a key of all that checks look at in arrays; ``None`` where one is no array."""
    mask, sinks, slopes = arrays.mask, arrays.sinks, arrays.alibi_slopes
    try:
        return (
            _kind(arrays.query),
            _kind(arrays.key),
            _kind(arrays.value),
            mask if mask is None else _kind(mask),
            sinks if sinks is None else _kind(sinks),
            slopes if slopes is None else _kind(slopes),
            *more,
        )
    except AttributeError:
        return None


def rule_key(rules: Rules) -> tuple[Any, ...]:
    """Return rules as parts of a key; 3.0 equals 3 but is no length, so types count too."""
    window = rules["window"]
    sides = tuple(map(type, window)) if isinstance(window, tuple) else ()
    causal = rules["is_causal"]
    return window, sides, causal, type(causal), _value(rules["scale"]), _value(rules["softcap"])


def _value(given: Any) -> Any:
    """Return the value of what may be an array, which equals itself when it has changed."""
    if given is None or isinstance(given, int | float | str):  # "0.5" is refused, 0.5 is not
        return given
    try:
        return float(given)
    except (TypeError, ValueError):
        return given


def _kind(array: Array | PackedTensor) -> tuple[Any, ...]:
    if isinstance(array, PackedTensor):
        parts = (array.data, array.scale, array.offset)
        kinds = [part if part is None else _kind(part) for part in parts]
        return (*kinds, array.bits, array.length)
    return type(array), array.shape, array.dtype, array.device


def check_kinds(where: str, arrays: AttentionArrays) -> Namespace:
    """Return the namespace of all arrays, which share framework, device and main type.

    Raises
    ------
    DtypeError
        If they do not, or if a type is not supported.
    """
    dense = {
        "query": arrays.query,
        **_stored("key", arrays.key),
        **_stored("value", arrays.value),
        "mask": arrays.mask,
        "sinks": arrays.sinks,
        "alibi_slopes": arrays.alibi_slopes,
    }
    xp = array_namespace(where, *dense.values())
    dtype = arrays.query.dtype
    if dtype_name(arrays.query) not in DTYPES:
        raise DtypeError(f"{where}: query is {dtype}; supported are {', '.join(DTYPES)}.")
    for name, array in (("key", arrays.key), ("value", arrays.value)):
        if not isinstance(array, PackedTensor) and array.dtype != dtype:
            raise DtypeError(
                f"{where}: query is {dtype} but {name} is {array.dtype}; they must be of one "
                f"type, or {name} a PackedTensor."
            )
    place = arrays.query.device
    for name, array in dense.items():
        if array is not None and array.device != place:
            raise DtypeError(
                f"{where}: query is on {place} but {name} is on {array.device}; all arrays "
                "must be on one device."
            )
    return xp


def check_heads(
    where: str, given: str, *, q_heads: int, kv_heads: int, dims: tuple[int, int, int]
) -> None:
    """Check that query heads can share key heads, and the head_dim of query, key and value.

    ``given`` words the shapes for messages.

    Raises
    ------
    ShapeError
        If they do not fit.
    """
    if dims[0] != dims[1]:
        raise ShapeError(f"{where}: query and key differ in head_dim: {given}.")
    if 0 in (q_heads, kv_heads, *dims):
        raise ShapeError(f"{where}: heads and head_dim must be at least 1: {given}.")
    if q_heads % kv_heads:
        raise ShapeError(
            f"{where}: {q_heads} query heads cannot be shared among {kv_heads} key heads; "
            "the second must divide the first."
        )


def make_problem(
    where: str, arrays: AttentionArrays, sizes: Mapping[str, int], rules: Rules
) -> AttentionProblem:
    """Check what comes on top of queries, keys and values, and return the whole as a problem.

    Parameters
    ----------
    where : str
        Name of the calling function; starts messages.
    arrays : AttentionArrays
        Of kinds that :func:`check_kinds` accepts.
    sizes : mapping of str to int
        The sizes of the call, by the names that :class:`AttentionProblem` gives them.
    rules : Rules
        The rules as the caller gave them.

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If a mask, a bias or a rule does not fit.
    """
    xp = array_namespace(where, arrays.query)
    batch, q_heads, q_len, kv_len = (sizes[s] for s in ("batch", "q_heads", "q_len", "kv_len"))
    _check_per_head(where, "sinks", arrays.sinks, xp, [(q_heads,)])
    _check_per_head(where, "alibi_slopes", arrays.alibi_slopes, xp, [(q_heads,), (batch, q_heads)])
    mask: MaskKind = "none"
    if arrays.mask is not None:
        mask = check_dense_mask(where, arrays.mask, xp, (batch, q_heads, q_len, kv_len))
    window = rules["window"]
    if window is not None:
        window = check_window(where, window)
    return AttentionProblem(
        **sizes,
        dtype=dtype_name(arrays.query),
        device=str(arrays.query.device),
        key_format=_format(arrays.key),
        value_format=_format(arrays.value),
        causal=_check_causal(where, rules["is_causal"]),
        window=None if window == (-1, -1) else window,
        scale=_check_scale(where, rules["scale"], sizes["head_dim"]),
        softcap=_check_softcap(where, rules["softcap"]),
        mask=mask,
        alibi=arrays.alibi_slopes is not None,
        sinks=arrays.sinks is not None,
    )


def _check_shapes(where: str, arrays: AttentionArrays) -> dict[str, int]:
    """Return the sizes of a dense call, by the names that AttentionProblem gives them."""
    shapes = {name: tuple(getattr(arrays, name).shape) for name in ("query", "key", "value")}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ShapeError(
                f"{where}: {name} must have 4 axes (batch, heads, length, head_dim), "
                f"got shape {shape}."
            )
    query, key, value = shapes.values()
    given = f"query {query}, key {key}, value {value}"
    if not query[0] == key[0] == value[0]:
        raise ShapeError(f"{where}: the batch sizes differ: {given}.")
    if key[1:3] != value[1:3]:
        raise ShapeError(f"{where}: key and value differ in heads or length: {given}.")
    dims = (query[3], key[3], value[3])
    check_heads(where, given, q_heads=query[1], kv_heads=key[1], dims=dims)
    return {
        "batch": query[0],
        "q_len": query[2],
        "kv_len": key[2],
        "q_heads": query[1],
        "kv_heads": key[1],
        "head_dim": query[3],
        "value_dim": value[3],
    }


def _check_per_head(
    where: str, name: str, array: Array | None, xp: Namespace, shapes: list[tuple[int, ...]]
) -> None:
    if array is None:
        return
    if tuple(array.shape) not in shapes:
        raise ShapeError(
            f"{where}: {name} must have shape {' or '.join(map(str, shapes))}, one number for "
            f"each query head, got {tuple(array.shape)}."
        )
    if not xp.isdtype(array.dtype, "real floating"):
        raise DtypeError(f"{where}: {name} must be floating, got {array.dtype}.")


def _check_scale(where: str, scale: float | None, head_dim: int) -> float:
    if scale is None:
        return 1 / math.sqrt(head_dim)
    number = _number(where, "scale", scale)
    if not math.isfinite(number):
        raise ParameterError(f"{where}: scale={scale} must be finite.")
    return number


def _check_softcap(where: str, softcap: float | None) -> float | None:
    if softcap is None:
        return None
    number = _number(where, "softcap", softcap)
    if not (math.isfinite(number) and number > 0):
        raise ParameterError(
            f"{where}: softcap={softcap} must be finite and above 0; None leaves scores uncapped."
        )
    return number


def _number(where: str, name: str, given: Any) -> float:
    if not isinstance(given, str):
        try:
            return float(given)
        except (TypeError, ValueError):
            pass
    raise ParameterError(f"{where}: {name}={given!r} must be a number.")


def _check_causal(where: str, given: Any) -> bool:
    """Return a flag; an array, perhaps meant as a mask, is none."""
    if isinstance(given, bool | np.bool_):
        return bool(given)
    raise ParameterError(f"{where}: is_causal must be True or False, got {given!r}; see mask.")


def _stored(name: str, array: Array | PackedTensor) -> dict[str, Array | None]:
    """Return the arrays that hold keys or values, by what messages call them."""
    if not isinstance(array, PackedTensor):
        return {name: array}
    return {name: array.data, f"{name}.scale": array.scale, f"{name}.offset": array.offset}


def _format(array: Array | PackedTensor) -> str:
    if not isinstance(array, PackedTensor):
        return "dense"
    groups = array.scale.shape[-1]
    return f"packed{array.bits}" + (f"x{groups}" if groups > 1 else "")
