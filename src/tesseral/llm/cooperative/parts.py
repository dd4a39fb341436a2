"""Attention by parts of the keys, each wherever it lies, and the sum of the parts."""

from typing import Any

import torch
from torch import Tensor

from tesseral.attention import attention
from tesseral.llm.cooperative.room import Pair


class PartialSum:
    """The attention of queries to the keys met so far, in float32.

    Parameters are added part by part; see :mod:`tesseral.attention.softmax` for the rule.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._lse: Tensor | None = None
        self._alone: Tensor | None = None

    def add(self, output: Tensor, lse: Tensor) -> None:
        """Add the attention to more keys.

        Parameters
        ----------
        output : tensor of shape (batch, q_heads, q_len, value_dim)
        lse : tensor of shape (batch, q_heads, q_len)
            Logarithm of the denominator; -inf where no key was seen.
        """
        if self._lse is None:
            self._alone, self._lse = output, lse
            return
        total = torch.logaddexp(self._lse, lse)
        kept, taken = (_weight(part, total) for part in (self._lse, lse))
        if self._sum is None:
            assert self._alone is not None
            self._sum, self._alone = self._alone.float() * kept, None
        else:
            self._sum *= kept
        self._sum.addcmul_(output.float(), taken)
        self._lse = total

    def state(self) -> tuple[Tensor, Tensor] | None:
        """Return output and lse in float32, ``None`` where nothing was added."""
        found = self._sum if self._alone is None else self._alone
        return None if found is None or self._lse is None else (found.float(), self._lse.float())

    def result(self, dtype: torch.dtype) -> Tensor:
        """Return the attention to all keys, in the type of the queries."""
        found = self._sum if self._alone is None else self._alone
        assert found is not None
        return found.to(dtype)


def _weight(part: Tensor, total: Tensor) -> Tensor:
    seen = torch.where(torch.isneginf(total), torch.zeros_like(total), total)
    return (part - seen).exp()[..., None]


def attend(query: Tensor, states: Pair, rule: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return output and lse of queries on some of their keys."""
    output: Any
    output, lse = attention(query, *states, return_lse=True, **rule)
    return output, lse


def part_of(
    rules: dict[str, Any], start: int, stop: int, *, length: int, q_len: int
) -> dict[str, Any]:
    """Return the rules for keys ``start`` to ``stop`` of ``length``.

    Keys before the queries' own are seen by all of them, so only the last part is causal. Sinks
    count once: with the last part.
    """
    last = stop == length
    names = ("scale", "softcap")
    rule: dict[str, Any] = {name: rules[name] for name in names if name in rules}
    if rules.get("mask") is not None:
        mask = rules["mask"]
        rule["mask"] = mask if mask.shape[-1] == 1 else mask[..., start:stop]
    if last:
        rule["sinks"] = rules.get("sinks")
        if rules.get("is_causal") and q_len > 1:
            rule["is_causal"] = True
    return rule
