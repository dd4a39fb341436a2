"""What calibration makes small: squared errors of a block's output, weighed by token."""

import torch
from torch import Tensor

from tesseral.quantization.numerics import working_dtype


def token_weights(targets: Tensor, objective: str) -> Tensor:
    """Return what the squared errors of each token are multiplied by.

    Parameters
    ----------
    targets : (samples, length, hidden) tensor
        Outputs of the original block.
    objective : {"token", "mean"}
        As in :class:`~tesseral.quantization.config.QuantizationConfig`.

    Returns
    -------
    (samples, length, 1) tensor
        One over the mean square of the token's output, or over that of all.
    """
    dtype = working_dtype(targets.dtype)
    power = torch.cat(
        [rows.to(dtype).square().mean(dim=-1, keepdim=True) for rows in targets.split(1)]
    )
    if objective == "mean":
        power = power.mean().expand_as(power)
    return 1 / power.clamp_min(torch.finfo(power.dtype).tiny)
