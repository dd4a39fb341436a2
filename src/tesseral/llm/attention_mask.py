"""The mask function that transformers calls before a forward pass, and the mask it returns.

transformers describes a mask by a function of positions. Causal masks, sliding windows and
full attention, each with or without padding, are bands: which keys a query sees follows from
its position and from which keys are padding. A band stays a rule, :class:`BandMask`, so that
nothing of size ``q_len x kv_len`` is built. Any other pattern becomes a boolean array.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_bidirectional_overlay,
    sliding_window_overlay,
)
from transformers.utils.import_utils import is_tracing

from tesseral._errors import ParameterError

Window = tuple[int, int]
"""How many keys a query sees before and after its own position; -1 is all of them."""

# a function made by one of transformers' factories is known by its code object, of which there
# is one for each factory, and its argument by its closure
_CONJUNCTION = and_masks(causal_mask_function).__code__
_SLIDING = sliding_window_overlay(1).__code__
_SLIDING_BOTH_WAYS = sliding_window_bidirectional_overlay(1).__code__


class BandMask(torch.Tensor):
    """A boolean mask, True = attend, that is kept as a rule until someone computes with it.

    Query ``i`` stands at key ``i + n_keys - q_len``. It sees the first ``n_keys`` keys as far
    as they lie in its window and are no padding; so keys from ``n_keys`` on can be dropped,
    and what is left is aligned bottom-right. Our attention reads the rule. To everyone else
    this is a boolean tensor: any operation on it works on :meth:`materialize`.

    Attributes
    ----------
    window : (int, int)
        How many keys a query sees before and after its own position; -1 is all of them.
    n_keys : int
        How many of the ``kv_len`` keys any query may see.
    padding : bool tensor of shape (batch, n_keys), or None
        True where a key is no padding; ``None`` when none is.
    sizes : (int, int)
        Number of queries and of keys, unseen ones included.
    rule : dict
        The arguments ``mask``, ``is_causal`` and ``window`` with which our attention sees the
        same of the first ``n_keys`` keys; what hides no key is left out.

    Raises
    ------
    ParameterError
        When an operation would write into it.
    """

    window: Window
    n_keys: int
    padding: torch.Tensor | None
    sizes: tuple[int, int]
    rule: dict[str, Any]

    # operations on the mask return plain tensors, not masks
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        window: Window,
        n_keys: int,
        padding: torch.Tensor | None,
        device: torch.device | str,
    ) -> "BandMask":
        """Make a mask of ``shape`` (batch, 1, q_len, kv_len); the rest as the attributes."""
        mask: BandMask = torch.Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=torch.bool, device=torch.device(device)
        )
        mask.window, mask.n_keys, mask.padding = window, n_keys, padding
        # every layer reads these, so they are made once
        mask.sizes = shape[2], shape[3]
        mask.rule = _rule(window, shape[2], n_keys, padding)
        return mask

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func._schema.is_mutable:
            raise ParameterError(f"BandMask: {func} would write into a mask; clone the mask first.")
        args, kwargs = tree_map_only(cls, cls.materialize, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        padded = self.padding is not None
        return (
            f"BandMask(shape={tuple(self.shape)}, window={self.window}, n_keys={self.n_keys}, "
            f"padded={padded})"
        )

    def materialize(self) -> torch.Tensor:
        """Return the mask as an ordinary boolean tensor of shape (batch, 1, q_len, kv_len)."""
        batch, _, q_len, kv_len = self.shape
        query = torch.arange(self.n_keys - q_len, self.n_keys, device=self.device)[:, None]
        key = torch.arange(kv_len, device=self.device)
        seen = (key < self.n_keys).expand(q_len, kv_len)
        before, after = self.window
        if before >= 0:
            seen = seen & (key >= query - before)
        if after >= 0:
            seen = seen & (key <= query + after)
        seen = seen.expand(batch, 1, q_len, kv_len)
        if self.padding is None:
            return seen.contiguous()
        unseen = kv_len - self.n_keys
        return seen & torch.nn.functional.pad(self.padding, (0, unseen))[:, None, None, :]


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
    BandMask or bool tensor of shape (batch, 1, q_length, kv_length)
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


def _sole_closure_value(function: Callable[..., Any]) -> Any:
    cells: tuple[Any, ...] = getattr(function, "__closure__", None) or ()
    return cells[0].cell_contents if len(cells) == 1 else None


def _intersection(windows: Sequence[Window]) -> Window:
    def tightest(bounds: Iterable[int]) -> int:
        return min((bound for bound in bounds if bound >= 0), default=-1)

    return tightest(before for before, _ in windows), tightest(after for _, after in windows)


def _rule(window: Window, q_len: int, n_keys: int, padding: torch.Tensor | None) -> dict[str, Any]:
    """Return the arguments of our attention that hide what a band hides."""
    before, after = window
    if before >= n_keys - 1:  # the last query, which sees least far back, sees the first key
        before = -1
    if after >= q_len - 1:  # the first query sees the last key
        after = -1
    rule: dict[str, Any] = {}
    if padding is not None:
        rule["mask"] = padding[:, None, None, :]
    if after == 0:
        rule["is_causal"], after = True, -1
    if (before, after) != (-1, -1):
        rule["window"] = (before, after)
    return rule


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
