"""A model divided among ranks: which layer is cut how, by transformers' own plan.

A dense layer that reads what others' rows are cut into (``rowwise`` in the plan) sums over ranks,
tile by tile while the next is computed. A layer in our format cannot: its input passes a transform
that mixes all channels and is rounded with one scale a token. So every rank gathers the whole
input, prepares it as one device would, and computes the output rows that it holds; these are
gathered again. For the output projection as many bytes are sent as for a sum, and all numbers are
those of one device.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.attention.distributed import (
    OverlapCosts,
    Peers,
    choose_plan,
    linear_all_reduce,
    measure_linear_costs,
)
from tesseral.llm.loading import load, read_config, stored_dtype
from tesseral.quantization.linear import QuantizedLinear
from tesseral.runtime.ranks import Step

COLUMNS, ROWS = "colwise", "rowwise"
_WHOLE = frozenset(
    {
        "colwise_gather_output",
        "colwise_rep",
        "embedding_rowwise",
        "replicate",
        "replicated_with_grad_allreduce",
    }
)
"""Styles of layers that every rank holds whole: embeddings, the output layer, norms of heads."""


def load_parallel(
    path: str | Path,
    *,
    group: Any = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, Tokenizer]:
    """Load a model directory, plain or in our format, and divide it among ranks.

    Start it with ``torchrun --nproc-per-node N``, with a process group made by
    ``torch.distributed.init_process_group``.

    Parameters
    ----------
    path, dtype
        As for :func:`~tesseral.llm.load`.
    group : ProcessGroup, optional
        The ranks; all by default.
    device : str or torch.device
        Of this rank.

    Raises
    ------
    ParameterError, UnsupportedModelError
        As of :func:`tensor_parallel`; others as of :func:`~tesseral.llm.load`.
    """
    path, place = Path(path), torch.device(device)
    if dtype is None and place.type != "cpu":
        dtype = stored_dtype(path, read_config(path))
    model, tokenizer = load(path, dtype=dtype)
    return tensor_parallel(model, group=group).to(place), tokenizer


def tensor_parallel(model: PreTrainedModel, *, group: Any = None) -> PreTrainedModel:
    """Keep this rank's part of a model; all ranks then call it with the same inputs.

    Parameters
    ----------
    model : transformers model
        Changed in place. It has a ``tp_plan``, and our attention or another that takes as many
        heads as it is given.
    group : ProcessGroup, optional
        The ranks; all by default.

    Returns
    -------
    transformers model
        The same. Its outputs are whole on every rank.

    Raises
    ------
    ParameterError
        If ranks do not divide its heads or widths; nothing is changed.
    UnsupportedModelError
        If its plan has styles that are not known here, or it has none.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    styles = _styles(model)
    _check(model, styles, size)
    if size == 1:
        return model
    for name, style in styles.items():
        layer = model.get_submodule(name)
        if style == COLUMNS:
            _keep_rows(layer, rank, size)
        elif isinstance(layer, QuantizedLinear):
            _keep_rows(layer, rank, size)
            _replace(model, name, GatheredLinear(layer, group))
        else:
            _replace(model, name, SummedLinear(layer, group))
    for module in model.modules():
        module.__dict__.pop("_parts", None)  # kernels of whole blocks
    return model


class GatheredLinear(nn.Module):
    """A layer in our format with this rank's rows; its input and output are gathered.

    Parameters
    ----------
    linear : QuantizedLinear
        With this rank's rows.
    group : ProcessGroup or None
        The ranks.
    """

    def __init__(self, linear: QuantizedLinear, group: Any) -> None:
        super().__init__()
        self.linear, self._group = linear, group

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output for this rank's channels of the input."""
        return gathered(self.linear(gathered(x, self._group)), self._group)


class SummedLinear(nn.Module):
    """A dense layer with the columns of this rank, summed over ranks tile by tile.

    Parameters
    ----------
    linear : torch.nn.Linear
        The whole layer.
    group : ProcessGroup or None
        The ranks.
    """

    def __init__(self, linear: nn.Linear, group: Any) -> None:
        super().__init__()
        size, rank = dist.get_world_size(group), dist.get_rank(group)
        columns = linear.weight.detach().chunk(size, dim=1)[rank].clone()
        self.weight = nn.Parameter(columns, requires_grad=False)
        self.bias = linear.bias
        self._group = group
        self.peers: Peers | None = None
        self.costs: OverlapCosts | None = None
        self._plans: dict[int, dict[str, Any]] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the whole output for this rank's channels of the input."""
        rows = x.reshape(1, -1, x.shape[-1]) if x.ndim != 3 else x
        out = linear_all_reduce(rows, self.weight, **self._how(rows.shape[1]))
        out = out.reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias

    def overlap(self, costs: OverlapCosts, peers: Peers | None = None) -> None:
        """Cut inputs into the tiles that these costs predict to be best."""
        self.costs, self.peers = costs, peers
        self._plans.clear()

    def _how(self, length: int) -> dict[str, Any]:
        if self.costs is None:
            return {"group": self._group}
        how = self._plans.get(length)
        if how is None:
            plan = choose_plan(self.costs, length, kv_len=0)
            how = {"tiles": plan.tiles, "group": self._group}
            if plan.through == "peers":
                how = {"tiles": plan.tiles, "peers": self.peers}
            self._plans[length] = how
        return how


@torch.no_grad()
def overlap_sums(
    model: PreTrainedModel, length: int, *, group: Any = None, peers: Peers | None = None
) -> list[OverlapCosts]:
    """Measure what a model's sums cost, and let its layers hide them where that pays.

    Parameters
    ----------
    model : transformers model
        Divided by :func:`tensor_parallel`; layers of our format are left as they are.
    length : int
        Tokens of a typical prompt.
    group : ProcessGroup, optional
        The ranks; all by default.
    peers : Peers, optional
        As for :func:`~tesseral.attention.distributed.linear_all_reduce`.

    Returns
    -------
    list of OverlapCosts
        One for each shape of layer, in the order in which they were met.
    """
    known: dict[torch.Size, OverlapCosts] = {}
    for layer in model.modules():
        if isinstance(layer, SummedLinear):
            shape = layer.weight.shape
            if shape not in known:
                x = layer.weight.new_empty((1, length, shape[1])).normal_()
                known[shape] = measure_linear_costs(x, layer.weight, group=group, peers=peers)
            layer.overlap(known[shape], peers)
    return list(known.values())


def gathered(x: Tensor, group: Any) -> Tensor:
    """Return the last axis of all ranks, one after the other."""
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    with Step("tensor parallelism", f"gather {tuple(x.shape)}", group):
        dist.all_gather(parts, x, group=group)
    return torch.cat(parts, dim=-1)


def _styles(model: PreTrainedModel) -> dict[str, str]:
    """Return the style of every layer that is cut, by name, rows before columns of a block."""
    plan: dict[str, str] = dict(getattr(model, "tp_plan", None) or {})
    if not plan:
        raise UnsupportedModelError(
            f"tensor parallelism: {type(model).__name__} has no tp_plan in transformers."
        )
    unknown = {style for style in plan.values() if style not in {COLUMNS, ROWS} | _WHOLE}
    if unknown:
        raise UnsupportedModelError(
            f"tensor parallelism: {type(model).__name__} is planned with "
            f"{', '.join(sorted(unknown))}; {COLUMNS} and {ROWS} are known here."
        )
    patterns = {
        re.compile(re.escape(name).replace(r"\*", r"\d+")): style
        for name, style in plan.items()
        if style in {COLUMNS, ROWS}
    }
    return {
        name: style
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | QuantizedLinear)
        for pattern, style in patterns.items()
        if pattern.fullmatch(name)
    }


def _check(model: PreTrainedModel, styles: dict[str, str], size: int) -> None:
    config = model.config.get_text_config()
    for what in ("num_attention_heads", "num_key_value_heads"):
        count = getattr(config, what, None)
        if count is not None and count % size:
            raise ParameterError(
                f"tensor parallelism: {size} ranks do not divide {what}={count}; use a number of "
                "ranks that does."
            )
    for name, style in styles.items():
        layer: Any = model.get_submodule(name)
        quantized = isinstance(layer, QuantizedLinear)
        widths = [layer.out_features] if style == COLUMNS or quantized else []
        widths += [layer.in_features] if style == ROWS else []
        for width in widths:
            if width % size:
                raise ParameterError(
                    f"tensor parallelism: {size} ranks do not divide the {width} channels of "
                    f"{name}."
                )


def _keep_rows(layer: Any, rank: int, size: int) -> None:
    """Keep a rank's output channels of a layer."""
    for name in ("weight", "weight_codes", "weight_scale", "weight_values", "bias"):
        tensor = getattr(layer, name, None)
        if tensor is None or tensor.numel() == 0:
            continue
        part = tensor.detach().chunk(size)[rank].clone()
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, requires_grad=False)
        setattr(layer, name, part)
    layer.out_features //= size
    if isinstance(layer, QuantizedLinear):
        layer._memo.clear()
        layer._problems.clear()
        layer._source[0]._memo.clear()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
