"""Which tiles of a dense mask leave something to see, so that kernels pass the others by."""

import torch
from torch import Tensor

from tesseral.attention.problem import AttentionProblem


def seen_tiles(problem: AttentionProblem, mask: Tensor, rows: int, keys: int) -> Tensor:
    """Return whether something is seen of each tile of rows and keys.

    Parameters
    ----------
    problem : AttentionProblem
        The call. Rows are queries by query heads of a group, these fastest.
    mask : tensor of four axes that broadcasts to (batch, q_heads, q_len, kv_len)
        Booleans as bytes, or numbers that are added.
    rows, keys : int
        Of a tile.

    Returns
    -------
    bool tensor of shape (batch, kv_heads, row tiles, key tiles)
        Axes along which the mask does not change have no stride, tiles of keys are neighbours.
    """
    seen = _by_keys(mask, keys)
    if mask.shape[1] > 1:
        seen = seen.unflatten(1, (problem.kv_heads, problem.group)).any(2)
    tiles = -(-problem.q_len * problem.group // rows)
    if mask.shape[2] > 1:
        first = torch.arange(tiles, device=mask.device) * rows // problem.group
        span = torch.arange((rows - 1) // problem.group + 2, device=mask.device)
        last = ((torch.arange(tiles, device=mask.device) + 1) * rows - 1) // problem.group
        last = last.clamp(max=problem.q_len - 1)
        queries = torch.minimum(first[:, None] + span, last[:, None])
        seen = seen[:, :, queries].any(3)
    key_tiles = -(-problem.kv_len // keys)
    seen = seen.expand(*seen.shape[:3], key_tiles).contiguous()
    return seen.expand(problem.batch, problem.kv_heads, tiles, key_tiles)


def _by_keys(mask: Tensor, keys: int) -> Tensor:
    """Return whether each query sees something of each tile of keys, without copying the mask."""
    length = mask.shape[-1]
    whole = length // keys * keys
    parts = [_any(mask[..., :whole].unflatten(-1, (whole // keys, keys)))]
    if whole < length:
        parts.append(_any(mask[..., None, whole:]))
    return torch.cat(parts, -1)


def _any(tiles: Tensor) -> Tensor:
    largest = tiles.amax(-1)
    return largest != 0 if tiles.dtype == torch.uint8 else largest != -torch.inf
