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
from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from tesseral._errors import ParameterError, UnsupportedModelError
from tesseral.attention.distributed import OverlapCosts, Peers, measure_linear_costs
from tesseral.llm.divided_layers import (
    GatheredLinear,
    GatheredOutput,
    SplitLinear,
    SummedLinear,
    divide_experts,
)
from tesseral.llm.division import SPLIT, check_heads
from tesseral.llm.loading import (
    dtype_on,
    mapped_model,
    read_config,
    read_tokenizer,
    settle,
    stored_dtype,
    usable_device,
)
from tesseral.quantization.linear import QuantizedLinear

COLUMNS, ROWS = "colwise", "rowwise"
GATHERED = "colwise_gather_output"
"""With :data:`~tesseral.llm.division.SPLIT`: where what lies between is needed whole, because one
matrix stands for several, or norms are of all heads."""

PACKED, EXPERTS = "packed_colwise", "moe_tp_experts"
_CUT = (COLUMNS, ROWS, GATHERED, SPLIT)
_WHOLE = frozenset(
    {
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

    A rank reads its part of what is cut, and holds no more than that at any time.

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
    path, place = Path(path), usable_device(device)
    wanted = dtype_on(place, path) if dtype is None else dtype
    description = read_config(path)
    quantized = description.get("quantization_config") is not None
    # what a rank does not keep is never read, or changed to another type
    read = wanted if quantized else stored_dtype(path, description)
    model = tensor_parallel(mapped_model(path, read), group=group)
    if read != wanted:
        _change_type(model, read, wanted)
    model.to(place)
    settle(model)
    return model, read_tokenizer(path)


@torch.no_grad()
def _change_type(model: PreTrainedModel, old: torch.dtype, new: torch.dtype) -> None:
    """Give parameters of a type another one; others are of their own type on purpose."""
    for parameter in model.parameters():
        if parameter.dtype == old:
            parameter.data = parameter.data.to(new)
    model.config.dtype = new


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
        If its plan has styles that are not known here, or names no layer of its blocks.
    """
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    styles = _styles(model)
    _check(model, styles, size)
    if size == 1:
        return model
    for name, style in styles.items():
        layer: Any = model.get_submodule(name)
        quantized = isinstance(layer, QuantizedLinear)
        if style == EXPERTS:
            divide_experts(layer, group)
            continue
        if quantized or style in (COLUMNS, GATHERED):
            _keep_rows(layer, rank, size)
        if style == GATHERED or (quantized and style == SPLIT):
            _replace(model, name, GatheredOutput(layer, group))
        elif style == ROWS:
            _replace(model, name, (GatheredLinear if quantized else SummedLinear)(layer, group))
        elif style == SPLIT:
            _replace(model, name, SplitLinear(layer, group))
    model._head_ranks = 1 if SPLIT in styles.values() else size
    for module in model.modules():
        module.__dict__.pop("_parts", None)  # kernels of whole blocks
    return model


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


def _styles(model: PreTrainedModel) -> dict[str, str]:
    """Return the style of every layer that is cut, by name, rows before columns of a block."""
    plan: dict[str, str] = dict(getattr(model, "tp_plan", None) or {})
    if not plan:
        raise UnsupportedModelError(
            f"tensor parallelism: {type(model).__name__} has no tp_plan in transformers."
        )
    experts = {name for name, style in plan.items() if style == EXPERTS}
    known = {*_CUT, EXPERTS} | _WHOLE
    unknown = {
        style
        for name, style in plan.items()
        if style not in known and not (style == PACKED and name.rpartition(".")[0] in experts)
    }
    if unknown:
        raise UnsupportedModelError(
            f"tensor parallelism: {type(model).__name__} is planned with "
            f"{', '.join(sorted(unknown))}; {', '.join((*_CUT, PACKED, EXPERTS))} are known here."
        )
    patterns = {
        re.compile(re.escape(name).replace(r"\*", r"\d+")): style
        for name, style in plan.items()
        if style in _CUT or style == EXPERTS
    }
    found = {
        name: style
        for name, module in model.named_modules()
        if module is not model.get_output_embeddings()
        for pattern, style in patterns.items()
        if pattern.fullmatch(name) and _takes(module, style)
    }
    if not found:
        raise UnsupportedModelError(
            f"tensor parallelism: the tp_plan of {type(model).__name__} names no layer of its "
            "blocks."
        )
    return found


def _takes(module: nn.Module, style: str) -> bool:
    """Return whether a module can be cut; experts in our format are many layers and stay whole."""
    if style == EXPERTS:
        return isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)
    return isinstance(module, nn.Linear | QuantizedLinear)


def _check(model: PreTrainedModel, styles: dict[str, str], size: int) -> None:
    if SPLIT not in styles.values():  # there every rank has all heads
        check_heads(model.config, size)
    for name, style in styles.items():
        for width in _widths(model.get_submodule(name), style):
            if width % size:
                raise ParameterError(
                    f"tensor parallelism: {size} ranks do not divide the {width} channels of "
                    f"{name}."
                )


def _widths(layer: Any, style: str) -> list[int]:
    """Return what ranks must divide of a layer."""
    if style == EXPERTS:
        return [layer.down_proj.shape[2]]
    quantized = isinstance(layer, QuantizedLinear)
    widths = [layer.out_features] if quantized or style in (COLUMNS, GATHERED) else []
    gathers = style == ROWS or (style == SPLIT and not quantized)
    return [*widths, layer.in_features] if gathers else widths


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
