"""The mask function that transformers calls before a forward pass, and the mask it returns.

transformers describes a mask by a function of positions. Causal masks, sliding windows and
full attention, each with or without padding, are bands: which keys a query sees follows from
its position and from which keys are padding. A band stays a rule, :class:`BandMask`, so that
nothing of size ``q_len x kv_len`` is built. Sequences packed one after another stay a rule too,
:class:`SegmentMask`. Any other pattern becomes a boolean array.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import masking_utils
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    packed_sequence_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_overlay,
    sliding_window_overlay,
)
from transformers.utils.import_utils import is_tracing

from tesseral.llm.rule_mask import BandMask, SegmentMask, Window

# a function made by one of transformers' factories is known by its code object, of which there
# is one for each factory, and its argument by its closure
_CONJUNCTION = and_masks(causal_mask_function).__code__
_SLIDING = sliding_window_overlay(1).__code__
_SLIDING_BOTH_WAYS = sliding_window_bidirectional_overlay(1).__code__
_PACKED = packed_sequence_mask_function(torch.zeros(1, 1)).__code__
# newer versions of transformers count positions in each packed sequence by itself
_remap = getattr(masking_utils, "remap_positions_for_packed_sequence", None)
_REMAPPED = None if _remap is None else _remap(causal_mask_function, None).__code__


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    *,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor:
    """Return the mask of one forward pass; registered with transformers by our name.

    Parameters
    ----------
    batch_size, q_length, kv_length : int
        Sizes that the attention function will see.
    q_offset : int or integer tensor
        Position of the first query; a tensor when it comes from a static cache.
    kv_offset : int
        Position of the first key.
    mask_function : callable
        Says for (batch, head, query position, key position) whether the key is seen.
    attention_mask : bool tensor of shape (batch, positions), optional
        True where a position is no padding; positions past its end are padding.
    allow_is_causal_skip, allow_is_bidirectional_skip : bool
        Whether transformers would allow no mask at all; when neither, it may need an ordinary
        tensor as the input of a compiled model. It compiles by itself on accelerators only,
        so on a CPU a rule is given all the same.
    device : torch.device or str
        Where the mask will be used.

    Returns
    -------
    BandMask, SegmentMask or bool tensor of shape (batch, 1, q_length, kv_length)
        True = attend. Never ``None``: that would leave open where the queries stand.
    """
    rule_allowed = allow_is_causal_skip or allow_is_bidirectional_skip or str(device) == "cpu"
    # while tracing, positions and padding have no values that could be read
    if rule_allowed and not is_tracing():
        window = _window(mask_function)
        diagonal = int(q_offset) - kv_offset
        n_keys = None if window is None else _visible(window, q_length, kv_length, diagonal)
        if window is not None and n_keys is not None:
            padding = _padding(attention_mask, kv_offset, n_keys)
            shape = (batch_size, 1, q_length, kv_length)
            return BandMask(shape, window, n_keys, padding, device)
    # transformers finds packed sequences where there is neither cache nor padding, and there it
    # compiles no mask but one that it traces
    packed = None if is_tracing() else _packed(mask_function)
    if packed is not None and packed[0].shape == (batch_size, q_length) and q_length == kv_length:
        return SegmentMask(*packed, device)
    mask: torch.Tensor = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        device=device,
        **kwargs,
    )
    return mask


def _window(mask_function: Callable[..., Any]) -> Window | None:
    """Return the window that a mask function of transformers means, None if it is no window."""
    if mask_function is causal_mask_function:
        return (-1, 0)
    if mask_function is bidirectional_mask_function:
        return (-1, -1)
    code = getattr(mask_function, "__code__", None)
    argument = _sole_closure_value(mask_function)
    if code is _SLIDING:
        return (argument - 1, -1)
    if code is _SLIDING_BOTH_WAYS:
        return (argument, argument)
    if code is not _CONJUNCTION:
        return None
    windows = [_window(part) for part in argument]
    known = [window for window in windows if window is not None]
    return _intersection(known) if len(known) == len(windows) else None


def _packed(mask_function: Callable[..., Any]) -> tuple[torch.Tensor, Window] | None:
    """Return the number of each token's sequence and the window in it, None if nothing is packed.

    In a sequence positions follow one another, so distances are those of its tokens.
    """
    if getattr(mask_function, "__code__", None) is not _CONJUNCTION:
        return None
    parts = _sole_closure_value(mask_function)
    numbers = [_sole_closure_value(part) for part in parts if _code(part) is _PACKED]
    windows = [_window(_remapped(part)) for part in parts if _code(part) is not _PACKED]
    known = [window for window in windows if window is not None]
    if len(numbers) != 1 or len(known) != len(windows):
        return None
    return numbers[0], _intersection(known)


def _remapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of positions in a sequence that one of positions in a row stands for."""
    if _REMAPPED is None or _code(function) is not _REMAPPED:
        return function
    cells: tuple[Any, ...] = getattr(function, "__closure__", None) or ()
    inner: Callable[..., Any]
    (inner,) = (cell.cell_contents for cell in cells if callable(cell.cell_contents))
    return inner


def _code(function: Callable[..., Any]) -> Any:
    return getattr(function, "__code__", None)


def _sole_closure_value(function: Callable[..., Any]) -> Any:
    cells: tuple[Any, ...] = getattr(function, "__closure__", None) or ()
    return cells[0].cell_contents if len(cells) == 1 else None


def _intersection(windows: Sequence[Window]) -> Window:
    def tightest(bounds: Iterable[int]) -> int:
        return min((bound for bound in bounds if bound >= 0), default=-1)

    return tightest(before for before, _ in windows), tightest(after for _, after in windows)


def _visible(window: Window, q_len: int, kv_len: int, diagonal: int) -> int | None:
    """Return how many leading keys a bottom-right aligned band covers, None if there is none.

    ``diagonal`` is the key at which the first query stands.
    """
    before, after = window
    last = diagonal + q_len
    if before < 0 and after < 0:
        return kv_len
    if after == 0 and 1 <= last <= kv_len:
        return last
    return kv_len if last == kv_len else None


def _padding(
    attention_mask: torch.Tensor | None, kv_offset: int, n_keys: int
) -> torch.Tensor | None:
    """Return which of the visible keys are no padding, None when all are."""
    if attention_mask is None:
        return None
    padding = attention_mask.bool()
    missing = kv_offset + n_keys - attention_mask.shape[-1]
    if missing > 0:
        padding = torch.nn.functional.pad(padding, (0, missing))
    padding = padding[:, kv_offset : kv_offset + n_keys]
    return None if bool(padding.all()) else padding
