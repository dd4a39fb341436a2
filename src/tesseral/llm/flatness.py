"""How flat the inputs of linear layers and their weights are, before and after quantising.

A tensor whose channels are about equally large loses little when its rows are rounded to a
few bits; one with a few large channels loses most of the others. This is what FlatQuant's
transforms are learned for.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral.llm.cache_argument import CACHE
from tesseral.llm.evaluate import new_cache
from tesseral.llm.layouts import blocks_of, opened_blocks
from tesseral.llm.text import clip_length, consecutive, tokenize
from tesseral.quantization.linear import QuantizedLinear
from tesseral.quantization.placement import INPUT_SITES, BlockLayout, InputSite
from tesseral.quantization.simulate import fake_quantize_rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteFlatness:
    """One input of linear layers, and the weights that read it.

    Attributes
    ----------
    block : int
        Number of the decoder block.
    site : str
        Name of the input; see :data:`tesseral.quantization.placement.INPUT_SITES`.
    activation : float64 array of shape (width,)
        Root mean square of each channel over all tokens, relative to that of all channels:
        1 everywhere if perfectly flat.
    weight : float64 array of shape (width,)
        The same of each input channel of the weights; of a quantised model's weights as they
        are stored, rounded.
    rounding_error : float
        Squared error of rounding each token's input to ``bits`` over its whole range,
        relative to the input's square.
    """

    block: int
    site: str
    activation: NDArray[np.float64]
    weight: NDArray[np.float64]
    rounding_error: float


@torch.inference_mode()
def flatness(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    sequence_length: int = 256,
    max_sequences: int = 4,
    bits: int = 4,
) -> list[SiteFlatness]:
    """Measure every input of a model's linear layers on a text.

    Parameters
    ----------
    model, tokenizer
        As :func:`~tesseral.llm.load` returns them. Of a quantised model the inputs are taken
        as its transforms leave them, before they are rounded.
    text : str
        At least one sequence long; the first ``max_sequences`` of it are read.
    sequence_length : int
        Tokens in a sequence, clipped to the model's maximum.
    max_sequences : int
        Sequences to read.
    bits : int
        Width to round to for ``rounding_error``.

    Returns
    -------
    list of SiteFlatness
        Block by block, each with its sites in the order of the placement table.

    Raises
    ------
    UnsupportedModelError
        If the architecture is not known.
    DataError
        If the text is shorter than one sequence.

    References
    ----------
    Sun, Liu et al. (2025), "FlatQuant", figure 1.
    """
    length = clip_length(model, sequence_length)
    sequences = consecutive(tokenize(model, tokenizer, text), length)[:max_sequences]
    with ExitStack() as stack:
        layouts = stack.enter_context(opened_blocks(model, model.config.model_type))
        gauges = [
            _Gauge(index, block, layout, site, bits)
            for index, (block, layout) in enumerate(zip(blocks_of(model), layouts, strict=True))
            for site in INPUT_SITES
        ]
        for gauge in gauges:
            stack.enter_context(gauge.attached())
        for sequence in sequences.to(model.device):
            cache = new_cache(model)
            model(sequence[None], **{CACHE: cache}, use_cache=cache is not None)
        return [gauge.read() for gauge in gauges]


class _Gauge:
    """Sums up what passes one input site of one block."""

    def __init__(
        self, index: int, block: nn.Module, layout: BlockLayout, site: InputSite, bits: int
    ) -> None:
        self._index, self._site, self._bits = index, site, bits
        self._readers = [block.get_submodule(name) for name in layout.readers(site)]
        self._watched = [block.get_submodule(name) for name in layout.first_readers(site)]
        self._source = None
        if isinstance(self._readers[0], QuantizedLinear):
            self._source = block.get_submodule(f"{layout.owner(site)}.{site.name}.transform")
        self._squares: Tensor | float = 0.0
        self._error = 0.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Watch the site's transform or, where there is none, what the layers read."""
        if self._source is not None:
            handles = [self._source.register_forward_hook(lambda _, __, x: self._add(x))]
        else:
            handles = [
                reader.register_forward_pre_hook(lambda _, xs: self._add(xs[0]))
                for reader in self._watched
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, x: Tensor) -> None:
        rows = x.flatten(0, -2).float()
        rounded = fake_quantize_rows(rows, rows.new_ones(2), self._bits)
        self._squares = self._squares + rows.double().square().sum(dim=0)
        self._error += float((rounded - rows).double().square().sum())

    def read(self) -> SiteFlatness:
        squares = np.asarray(torch.as_tensor(self._squares).cpu())
        weights = torch.cat([_values(reader) for reader in self._readers]).double()
        return SiteFlatness(
            block=self._index,
            site=self._site.name,
            activation=_relative(squares),
            weight=_relative(np.asarray(weights.square().sum(dim=0).cpu())),
            rounding_error=self._error / float(squares.sum()),
        )


def _values(linear: Any) -> Tensor:
    weight: Tensor = linear.dense_weight() if isinstance(linear, QuantizedLinear) else linear.weight
    return weight


def _relative(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return magnitudes whose mean square is 1, given squares."""
    return np.asarray(np.sqrt(squares / squares.mean()))
