"""From simulated parts to what is stored: fuse in float64, round once, name the tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tesseral.core.packing import pack, storage_bits
from tesseral.quantization.block import SimulatedBlock
from tesseral.quantization.config import OFF
from tesseral.quantization.fusion import fuse_norm, fuse_scale
from tesseral.quantization.numerics import weight_scale
from tesseral.quantization.placement import CODEC, INPUT_SITES, InputSite, site_of
from tesseral.quantization.rounding import compensated_codes, nearest_codes
from tesseral.quantization.simulate import SimulatedInput
from tesseral.quantization.transforms.kronecker import Kronecker


@torch.no_grad()
def frozen_state(
    simulated: SimulatedBlock, dtype: torch.dtype, moments: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the tensors of the quantised block, named relative to the block.

    The names are those of the modules that
    :func:`~tesseral.quantization.block.replace_with_quantized` puts in place.

    Parameters
    ----------
    simulated : SimulatedBlock
        Calibrated parts. They are converted to float64 in place: freezing goes one way.
    dtype : torch.dtype
        Type of transforms, scales, biases, norms and dense weights.
    moments : mapping of str to (width, width) tensor, optional
        Second moments of each input site; without them weights are rounded to the nearest.
    """
    simulated.double()
    simulated.refresh()
    state = _kept_state(simulated)
    for site in INPUT_SITES:
        prefix = f"{simulated.layout.owner(site)}.{site.name}"
        state |= _input_state(prefix, simulated.inputs[site.name])
    for name, roles in simulated.layout.linears.items():
        site = site_of(roles[0]).name
        state |= _linear_state(simulated, name, dtype, (moments or {}).get(site))
    state |= _codec_state(simulated) | _scaled_state(simulated)
    return {
        name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def _kept_state(simulated: SimulatedBlock) -> dict[str, Tensor]:
    """Return what the block holds beside its linear layers, such as norms of queries and keys."""
    (block,) = simulated.block
    replaced = tuple(f"{name}." for name in simulated.layout.linears)
    return {n: tensor for n, tensor in block.state_dict().items() if not n.startswith(replaced)}


def _input_state(prefix: str, source: SimulatedInput) -> dict[str, Tensor]:
    factors = _factor_state(f"{prefix}.transform", source.online)
    return factors | {f"{prefix}.clip": source.clip()}


def _linear_state(
    simulated: SimulatedBlock, name: str, dtype: torch.dtype, moments: Tensor | None
) -> dict[str, Tensor]:
    linear = simulated.linears[name]
    weight, bias = linear.fused(torch.float64)
    for site in INPUT_SITES:
        scale, rows = simulated.inputs[site.name].scale, _scaled_rows(simulated, name, site)
        if scale is not None and rows is not None:
            weight = fuse_scale(weight, scale, rows)
            bias = None if bias is None else fuse_scale(bias, scale, rows)
    state = {f"{name}.weight": weight.new_empty(0)}
    if bias is not None:
        state[f"{name}.bias"] = bias
    if linear.bits == OFF:
        return state | {f"{name}.weight_values": weight}
    scale = weight_scale(weight, linear.clip(), linear.bits, linear.group_size)
    # round with the value that will be read back
    scale = scale.to(dtype).double()
    if moments is None:
        codes = nearest_codes(weight, scale, linear.bits)
    else:
        codes = compensated_codes(weight, scale, linear.bits, moments)
    return state | {
        f"{name}.weight_codes": pack(codes.to(torch.int8), storage_bits(linear.bits)),
        f"{name}.weight_scale": scale,
    }


def _codec_state(simulated: SimulatedBlock) -> dict[str, Tensor]:
    prefix, codec = f"{simulated.layout.attention}.{CODEC}", simulated.codec
    transform: Kronecker = codec.current
    return {
        **_factor_state(f"{prefix}.key_transform", transform.factors),
        **_factor_state(f"{prefix}.query_transform", transform.inverse_transposes),
        f"{prefix}.key_clip": codec.key_clip(),
        f"{prefix}.value_clip": codec.value_clip(),
    }


def _scaled_state(simulated: SimulatedBlock) -> dict[str, Tensor]:
    """Return the weights of norms that take a scale, and of what else reads their output."""
    (block,), layout = simulated.block, simulated.layout
    state = {}
    for site in INPUT_SITES:
        scale, norm = simulated.inputs[site.name].scale, layout.norms.get(site.scale_into or "")
        if scale is not None and norm is not None:
            weight = block.get_parameter(f"{norm}.weight").detach().double()
            state[f"{norm}.weight"] = fuse_norm(weight, scale, layout.norm_offset)
            for name in layout.unquantised.get(site.name, ()):
                weight = block.get_parameter(f"{name}.weight").detach().double()
                state[f"{name}.weight"] = weight / scale
    return state


def _scaled_rows(simulated: SimulatedBlock, name: str, site: InputSite) -> slice | None:
    """Return the rows of a linear layer that take a site's scale."""
    return simulated.layout.rows(name, site.scale_into or "", simulated.shape)


def _factor_state(prefix: str, factors: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    return {f"{prefix}.factor{i}": f for i, f in enumerate(factors) if f is not None}
