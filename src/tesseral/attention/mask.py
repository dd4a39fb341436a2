"""Mask rules as data: a band of visible keys, and the kinds of dense masks.

Causality and sliding windows both let query ``i`` see keys whose distance from the
diagonal lies in an interval, so one record, :class:`Band`, states any mixture of them.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.core._arrays import Array, Namespace

Align: TypeAlias = Literal["bottom-right", "top-left"] | int
"""Where the diagonal runs: the position of query 0 among the keys, or the corner it meets."""

MaskKind: TypeAlias = Literal["none", "boolean", "additive"]
"""What a dense mask holds: True where a key is visible, or a number added to each score."""

Window: TypeAlias = tuple[int, int]
"""Keys visible before and after the diagonal; -1 = unbounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Query ``i`` sees key ``j`` when ``lower <= j - i <= upper``; ``None`` = unbounded."""

    lower: int | None
    upper: int | None


def make_band(
    q_len: int,
    kv_len: int,
    *,
    is_causal: bool = False,
    window: Window | None = None,
    align: Align = "bottom-right",
) -> Band:
    """Return the keys that causality and a sliding window leave visible, as one band.

    Parameters
    ----------
    q_len, kv_len : int
        Number of queries and of keys.
    is_causal : bool
        Hide the keys after the diagonal.
    window : (int, int), optional
        Hide the keys further than ``left`` before and ``right`` after the diagonal;
        -1 = unbounded. With ``is_causal`` both hold.
    align : {"bottom-right", "top-left"} or int
        Let the diagonal end at the last query and key, start at the first, or put query 0
        beside the key of that number.

    Raises
    ------
    ParameterError
        If ``window`` or ``align`` is malformed.
    """
    offset = _offset(q_len, kv_len, align)
    left, right = (-1, -1) if window is None else check_window("make_band", window)
    if is_causal:
        right = 0
    return Band(
        lower=None if left < 0 else offset - left,
        upper=None if right < 0 else offset + right,
    )


def check_window(where: str, window: object) -> Window:
    """Return ``window`` as a pair of ints, each at least -1.

    Raises
    ------
    ParameterError
        If it is anything else.
    """
    if (
        isinstance(window, (tuple, list))
        and len(window) == 2
        and all(isinstance(side, int) and side >= -1 for side in window)
    ):
        return window[0], window[1]
    raise ParameterError(
        f"{where}: window={window!r} is not a pair (left, right) of integers from -1 up; "
        "-1 leaves a side unbounded."
    )


def check_dense_mask(
    where: str, mask: Array, xp: Namespace, scores_shape: tuple[int, int, int, int]
) -> MaskKind:
    """Return the kind of ``mask``, which must broadcast to the shape of the scores.

    Parameters
    ----------
    where : str
        Name of the calling function; starts the message.
    mask : boolean or floating array
        The mask to judge; only its shape and type are read.
    xp : namespace
        The array functions of its framework.
    scores_shape : (batch, q_heads, q_len, kv_len)
        What it masks.

    Raises
    ------
    ShapeError, DtypeError
        If it does not broadcast, or is neither boolean nor floating.
    """
    shape = tuple(mask.shape)
    fits = zip(reversed(shape), reversed(scores_shape), strict=False)
    if len(shape) > 4 or any(size not in (1, full) for size, full in fits):
        raise ShapeError(
            f"{where}: a mask of shape {shape} does not broadcast to "
            f"(batch, q_heads, q_len, kv_len) = {scores_shape}."
        )
    if xp.isdtype(mask.dtype, "bool"):
        return "boolean"
    if xp.isdtype(mask.dtype, "real floating"):
        return "additive"
    raise DtypeError(
        f"{where}: mask must be boolean (True = visible) or floating (added to the scores), "
        f"got {mask.dtype}."
    )


def _offset(q_len: int, kv_len: int, align: Align) -> int:
    if isinstance(align, int):
        return align
    if align == "bottom-right":
        return kv_len - q_len
    if align == "top-left":
        return 0
    raise ParameterError(
        f"make_band: align={align!r} is not 'bottom-right', 'top-left' or the position of "
        "query 0 among the keys."
    )
