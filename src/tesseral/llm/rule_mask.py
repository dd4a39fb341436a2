"""Masks that are kept as rules: to our attention arguments, to everyone else boolean tensors."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from tesseral._errors import BackendError, ParameterError

Window = tuple[int, int]
"""How many keys a query sees before and after its own position; -1 is all of them."""


_AS_NUMBERS = {"aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div"}
"""Operations that read a mask as something to add to scores, which ours is not."""


class RuleMask(torch.Tensor):
    """A boolean mask, True = attend, of which an array is made when someone computes with it.

    Any operation on it works on :meth:`materialize` and returns plain tensors.

    Raises
    ------
    ParameterError
        When an operation would write into it.
    BackendError
        When one would add it to scores, or hide what it shows: so do models that bring their
        own attention and do not ask for ours, and they would go on with wrong scores.
    """

    # operations on the mask return plain tensors, not masks
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func._schema.is_mutable:
            raise ParameterError(
                f"{cls.__name__}: {func} would write into a mask; clone the mask first."
            )
        kwargs = kwargs or {}
        if _misreads(func._schema.name, args, kwargs):
            raise BackendError(
                f"{cls.__name__}: {func} would take a mask of True = attend for another kind; the "
                "model does not call the attention that attn_implementation='tesseral' names. "
                "Use attn_implementation='eager' for it."
            )
        args, kwargs = tree_map_only(cls, cls.materialize, (args, kwargs))
        return func(*args, **kwargs)

    @abstractmethod
    def materialize(self) -> torch.Tensor:
        """Return the mask as an ordinary boolean tensor of shape (batch, 1, q_len, kv_len)."""


class BandMask(RuleMask):
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


class SegmentMask(RuleMask):
    """The mask of rows in which several sequences follow one another.

    A query sees the keys of its own sequence, as far as they lie in its window.

    Attributes
    ----------
    window : (int, int)
        How many keys a query sees before and after its own position; -1 is all of them.
    edges : int64 array of shape (n_sequences + 1,)
        Where each sequence starts among the tokens of all rows and, last, where the last ends.
    rule : dict
        The arguments ``is_causal`` and ``window`` of our attention to one sequence.
    """

    window: Window
    edges: np.ndarray[Any, Any]
    rule: dict[str, Any]

    @staticmethod
    def __new__(
        cls, numbers: torch.Tensor, window: Window, device: torch.device | str
    ) -> "SegmentMask":
        """Make a mask of the number of each token's sequence, of shape (batch, length)."""
        batch, length = numbers.shape
        mask: SegmentMask = torch.Tensor._make_wrapper_subclass(
            cls, (batch, 1, length, length), dtype=torch.bool, device=torch.device(device)
        )
        starts = torch.ones_like(numbers, dtype=torch.bool)
        starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        mask.edges = np.append(np.flatnonzero(starts.cpu().numpy()), batch * length)
        longest = int(np.diff(mask.edges).max(initial=0))
        mask.window, mask.rule = window, _rule(window, longest, longest, None)
        return mask

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return (
            f"SegmentMask(shape={tuple(self.shape)}, window={self.window}, "
            f"n_sequences={len(self.edges) - 1})"
        )

    def materialize(self) -> torch.Tensor:
        """Return the mask as an ordinary boolean tensor of shape (batch, 1, length, length)."""
        batch, _, length, _ = self.shape
        lengths = torch.from_numpy(np.diff(self.edges))
        numbers = torch.repeat_interleave(lengths).reshape(batch, length).to(self.device)
        together = numbers[:, None, :, None] == numbers[:, None, None, :]
        shape = batch, 1, length, length
        return together & BandMask(shape, self.window, length, None, self.device).materialize()


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


def _misreads(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation takes a boolean mask for one to add, or for its opposite."""
    if operation == "aten::masked_fill":
        return isinstance(args[1], RuleMask)
    if operation == "aten::_to_copy":
        dtype = kwargs.get("dtype")
        return dtype is not None and dtype.is_floating_point
    return operation in _AS_NUMBERS
