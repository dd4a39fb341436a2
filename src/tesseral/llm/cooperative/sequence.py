"""A cache whose tokens are divided among ranks, for contexts that one device cannot hold."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Cache, PreTrainedModel

from tesseral._errors import ParameterError
from tesseral.attention.distributed.sequence import merge_ranks
from tesseral.llm.cooperative.forms import codecs_of, nothing_of, sliding_layer
from tesseral.llm.cooperative.layers import PlacedLayer, ranges, refuse_window, sliced
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.parts import PartialSum, attend
from tesseral.llm.cooperative.plan import CHUNK
from tesseral.llm.cooperative.room import Pair, Room, dense
from tesseral.llm.cooperative.shape import DENSE_TOKENS, describe
from tesseral.quantization.kvcodec import KVCodec
from tesseral.runtime.ranks import check_alike

_NAME = "SequenceCache"


class SequenceCache(Cache):  # type: ignore[misc]  # transformers is untyped to mypy
    """A cache for contexts that one device does not hold: each rank keeps some of the tokens.

    Every rank runs the whole model on the same tokens, and of each call's keys and values keeps
    an equal share, one after the other. Queries attend on every rank to the tokens that lie
    there; outputs and the logarithms of their denominators are gathered and merged. So memory
    for keys and values, and the time of reading them, are divided by the number of ranks; weights
    and all other work are not. What is sent are outputs, whose size does not grow with the context.

    All memory is taken at once. Layers with a sliding window keep it whole on every rank.
    Gradients do not pass, and tokens cannot be removed again.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        The same on every rank, whole, with ``attn_implementation="tesseral"``; quantised or not.
    context : int
        Tokens of a sequence, those that are generated included.
    batch : int
        Sequences.
    kv_bits : {16, 8, 4}, optional
        As for :func:`plan_memory`.
    chunk : int
        Tokens of a prompt that should go through the model at once.
    group : ProcessGroup, optional
        The ranks; all by default. All of them make it and use it alike.

    Raises
    ------
    ParameterError
        If a number is out of range, or the model has another attention.
    UnsupportedModelError
        If the model has layers without ordinary keys and values.
    DistributedError
        If ranks ask for different ones, give different tokens, or one of them fails.

    Examples
    --------
    >>> cache = SequenceCache(model, 1_048_576)  # doctest: +SKIP
    >>> model.generate(  # doctest: +SKIP
    ...     **inputs, past_key_values=cache, prefill_chunk_size=cache.chunk
    ... )
    """

    def __init__(
        self,
        model: PreTrainedModel,
        context: int,
        *,
        batch: int = 1,
        kv_bits: int | None = None,
        chunk: int = CHUNK,
        group: Any = None,
    ) -> None:
        for name, number in {"context": context, "batch": batch, "chunk": chunk}.items():
            if number < 1:
                raise ParameterError(f"{_NAME}: {name} must be at least 1, got {number}.")
        shape = describe(model, kv_bits, _NAME)
        bits = shape.key_bits, shape.value_bits
        codecs = codecs_of(model, bits, what=_NAME)
        check_alike(_NAME, (context, batch, bits, len(codecs)), group)
        self.context, self.chunk = context, chunk
        share, link = -(-context // dist.get_world_size(group)), Link(model.device)
        layers: list[Any] = []
        for codec, window in zip(codecs, shape.windows, strict=True):
            if window is not None:
                layers.append(sliding_layer(model, codec, window))
                continue
            room = Room(nothing_of(model, batch, codec), share, link.device_array)
            first = not any(isinstance(layer, SequenceLayer) for layer in layers)
            layers.append(SequenceLayer(room, codec, link, context, group, checks=first))
        super().__init__(layers=layers)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values on this rank, of layers without a sliding window."""
        return sum(layer.room.nbytes for layer in self.layers if isinstance(layer, SequenceLayer))


class SequenceLayer(PlacedLayer):
    """One layer's tokens on this rank.

    Parameters
    ----------
    room : Room
        Where they lie.
    codec, link
        As for :class:`~tesseral.llm.cooperative.layers.PlacedLayer`.
    context : int
        Tokens of all ranks.
    group : ProcessGroup or None
        The ranks.
    checks : bool
        Whether ranks compare what they are given, more than one token at a time.
    """

    is_croppable = False

    def __init__(
        self,
        room: Room,
        codec: KVCodec | None,
        link: Link,
        context: int,
        group: Any,
        *,
        checks: bool,
    ) -> None:
        super().__init__(room, codec, link)
        self._context, self._group, self._checks = context, group, checks
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._own, self._part = 0, (0, 0)
        with torch.inference_mode(False):
            self._places = torch.zeros(room.room, dtype=torch.int64, device=link.device)

    def get_max_length(self) -> int:
        """Return how many tokens fit."""
        return self._context

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refuse: what ranks would hold then is no longer of equal length.

        Raises
        ------
        ParameterError
            Always.
        """
        raise ParameterError(
            f"{_NAME}: crop({tokens_to_remove}) is not possible; reset the cache or make another."
        )

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        super().reset()
        self._own = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence ``i`` go on from ``beam_idx[i]``."""
        self.room.reorder(beam_idx, self._own)

    def _check(self, shape: Sequence[int]) -> None:
        self.room.check((*shape[:2], 0, shape[3]), self._own, _NAME)
        if self._length + shape[2] > self._context:
            raise ParameterError(
                f"{_NAME}: {self._length + shape[2]} tokens do not fit a cache for "
                f"{self._context}; make one for a longer context."
            )
        if self._checks and shape[2] > 1:
            check_alike(_NAME, (tuple(shape), self._length), self._group)

    def _write(self, states: Pair) -> None:
        self._part = first, end = part_of_rank(
            self._length, states[0].shape[2], self._rank, self._size
        )
        self.room.put(sliced(states, first, end), self._own)
        places = torch.arange(self._length + first, self._length + end, device=self.link.device)
        self._places[self._own : self._own + end - first] = places
        self._own += end - first

    def _attend(self, query: Tensor, rules: dict[str, Any]) -> Tensor:
        refuse_window(rules)
        total, q_len, (first, end) = PartialSum(), query.shape[2], self._part
        rule = {name: rules.get(name) for name in ("scale", "softcap")}
        last = rule | {"sinks": rules.get("sinks")} if first < end == q_len else rule
        if q_len == 1:
            self._add(total, query, (0, self._own), rules, last)
        else:
            past = self._own - (end - first)
            self._add(total, query, (0, past), rules, rule)
            if rules.get("is_causal"):  # up to the query's own, counted from the last key here
                last = last | {"window": (-1, q_len - end)}
            self._add(total, query, (past, self._own), rules, last)
        found = total.state()
        if found is None:
            nothing = query.new_zeros(query.shape, dtype=torch.float32)
            found = nothing, torch.full_like(nothing[..., 0], -torch.inf)
        return merge_ranks(*found, what=_NAME, group=self._group).to(query.dtype)

    def _add(
        self,
        total: PartialSum,
        query: Tensor,
        span: tuple[int, int],
        rules: dict[str, Any],
        rule: dict[str, Any],
    ) -> None:
        """Add the attention to a span of the tokens here; one with a window all at once."""
        start, stop = span
        mask = rules.get("mask")
        # kernels for many queries take numbers, so codes become numbers some at a time
        makes_numbers = self.link.remote and self.room.coded and not self._is_few(query)
        at_once = DENSE_TOKENS if makes_numbers and "window" not in rule else max(1, stop - start)
        for low, high in ranges(start, stop, at_once, 0):
            if mask is not None and mask.shape[-1] != 1:
                rule = rule | {"mask": mask.index_select(-1, self._places[low:high])}
            elif mask is not None:
                rule = rule | {"mask": mask}
            states = self.room.states(low, high)
            total.add(*attend(query, dense(states, query.dtype) if makes_numbers else states, rule))


def part_of_rank(length: int, new: int, rank: int, size: int) -> tuple[int, int]:
    """Return which of some new tokens a rank keeps, behind ``length`` that were divided before.

    However tokens come, ranks hold as many as one another, but for one.

    Examples
    --------
    >>> [part_of_rank(0, 7, rank, 3) for rank in range(3)]
    [(0, 3), (3, 5), (5, 7)]
    >>> [part_of_rank(7, 1, rank, 3) for rank in range(3)]
    [(0, 0), (0, 1), (1, 1)]
    """

    def held(rank: int, tokens: int) -> int:
        return (tokens + size - 1 - rank) // size

    sizes = [held(other, length + new) - held(other, length) for other in range(rank + 1)]
    return sum(sizes[:-1]), sum(sizes)
