"""What attention heads look at: a tensor of statistics, and groups of heads alike in it."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from tesseral._errors import TesseralWarning
from tesseral.cluster import DegreeCorrectedTensorBlockModel
from tesseral.llm.analysis.tokens import CLASSES
from tesseral.llm.layouts import blocks_of, opened_blocks

Floats = NDArray[np.float64]

NEAR = 8
PLACES = ("spread", "first token", "itself", "previous token", f"last {NEAR} tokens")
"""Statistics that depend on where keys are; the others are shares of each class of keys."""

LARGEST = 6
"""Most groups that are tried."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadStatistics:
    """How every head spreads its attention, by the kind of token that asks.

    Attributes
    ----------
    values : float64 array of shape (layers, heads, classes, statistics)
        Means over the queries of a class, all between 0 and 1: the spread, which is the entropy
        of attention relative to that of equal attention, and shares of attention on the first
        token, on the query itself, on the token before it, on the last few, and on keys of each
        class.
    classes, statistics : tuple of str
        Names of the last two axes; classes that the text lacks are left out.
    """

    values: Floats
    classes: tuple[str, ...]
    statistics: tuple[str, ...]


@torch.no_grad()
def head_statistics(
    model: PreTrainedModel, sequences: Tensor, classes: NDArray[np.int64]
) -> HeadStatistics:
    """Measure the attention of all heads.

    Attention weights are formed for one sequence and layer at a time, by transformers' own
    attention.

    Parameters
    ----------
    model : transformers model
        Of a known architecture, not quantised.
    sequences : integer tensor of shape (n, length)
        Tokens.
    classes : integer array of shape (n, length)
        The class of every token; see :func:`.tokens.token_classes`.

    Raises
    ------
    UnsupportedModelError
        If the architecture is not known.
    """
    present = [c for c in range(len(CLASSES)) if np.any(classes[:, 1:] == c)]
    sums: dict[int, Tensor] = {}
    counts = torch.zeros(len(present), dtype=torch.float64)
    with ExitStack() as stack:
        layouts = stack.enter_context(opened_blocks(model, model.config.model_type))
        stack.enter_context(_weights_formed(model))
        asked: list[Tensor] = []

        def watch(index: int) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: tuple[Tensor, Tensor]) -> None:
                found = _statistics(output[1][0].double().cpu(), asked[-1])
                sums[index] = sums.get(index, torch.zeros(())) + found

            return hook

        for index, (block, layout) in enumerate(zip(blocks_of(model), layouts, strict=True)):
            module = block.get_submodule(layout.attention)
            stack.callback(module.register_forward_hook(watch(index)).remove)
        for sequence, kinds in zip(sequences.to(model.device), classes, strict=True):
            members = torch.from_numpy(np.stack([kinds == c for c in present]).astype(np.float64))
            members[:, 0] = 0  # the first token is no class: it sees itself only
            asked.append(members)
            counts += members.sum(dim=1)
            model(sequence[None], use_cache=False)
    means = torch.stack([sums[index] for index in sorted(sums)]) / counts[:, None]
    names = tuple(CLASSES[c] for c in present)
    return HeadStatistics(
        values=means.numpy(),
        classes=names,
        statistics=(*PLACES, *(f"on {name}" for name in names)),
    )


def _statistics(weights: Tensor, members: Tensor) -> Tensor:
    """Return sums over the queries of each class, of shape (heads, classes, statistics).

    Parameters
    ----------
    weights : float64 tensor of shape (heads, length, length)
        Attention weights; rows are queries.
    members : float64 tensor of shape (classes, length)
        1 where a token is of a class.
    """
    length = weights.shape[-1]
    seen = torch.arange(1, length + 1, dtype=torch.float64)
    entropy = -torch.xlogy(weights, weights).sum(dim=-1) / seen.clamp_min(2).log()
    previous = torch.zeros_like(entropy)
    previous[:, 1:] = weights.diagonal(offset=-1, dim1=-2, dim2=-1)
    near = torch.ones(length, length, dtype=torch.float64).tril().triu(1 - NEAR)
    by_query = torch.stack(
        [
            entropy,
            weights[..., 0],
            weights.diagonal(dim1=-2, dim2=-1),
            previous,
            (weights * near).sum(dim=-1),
        ],
        dim=-1,
    )
    by_query = torch.cat([by_query, weights @ members.mT], dim=-1)
    return torch.einsum("cq,hqs->hcs", members, by_query)


@contextmanager
def _weights_formed(model: PreTrainedModel) -> Iterator[None]:
    """Have attention modules form their weights and return them."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeadGroups:
    """Heads that spread their attention alike.

    Attributes
    ----------
    labels : int array of shape (layers, heads)
        Numbered from the largest group.
    means : float64 array of shape (groups, statistics)
        Over the heads of a group and all classes.
    names : tuple of str
        For each group, the statistic in which it exceeds the other heads the most.
    bic_path : dict of int to float
        The criterion for every number of groups that was tried; empty if that was given.
    warnings : tuple of str
    """

    labels: NDArray[np.int64]
    means: Floats
    names: tuple[str, ...]
    bic_path: dict[int, float]
    warnings: tuple[str, ...]


def group_heads(found: HeadStatistics, n_groups: int | str = "bic", seed: int = 0) -> HeadGroups:
    """Cluster heads by the degree-corrected block model of heads x classes x statistics.

    Classes and statistics are clusters of their own, so that a group of heads is one whose
    rows have one direction: heads of which one has more of everything are alike.

    Parameters
    ----------
    found : HeadStatistics
        What is known of each head.
    n_groups : int or "bic"
        How many groups; the word chooses by the Bayesian information criterion.
    seed : int
        For whatever is random.
    """
    layers, heads, *rest = found.values.shape
    rows = found.values.reshape(layers * heads, *rest)
    most = min(LARGEST, layers * heads)
    tried = range(2, most + 1) if n_groups == "bic" else [int(n_groups)]
    fits: dict[int, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TesseralWarning)
        for count in tried:
            model = DegreeCorrectedTensorBlockModel((count, *rest), symmetric=False)
            fits[count] = model.set_params(random_state=seed).fit(rows)
    best = min(fits.values(), key=lambda model: model.bic_)
    labels = best.labels_[0]
    flat = rows.mean(axis=1)
    spread = flat.std(axis=0) + 1e-12
    means = np.stack([flat[labels == group].mean(axis=0) for group in range(labels.max() + 1)])
    unlike = (means - flat.mean(axis=0)) / spread
    return HeadGroups(
        labels=labels.reshape(layers, heads),
        means=means,
        names=tuple(found.statistics[int(np.argmax(row))] for row in unlike),
        bic_path={k: float(m.bic_) for k, m in fits.items()} if n_groups == "bic" else {},
        warnings=tuple(dict.fromkeys(str(w.message) for w in caught)),
    )
