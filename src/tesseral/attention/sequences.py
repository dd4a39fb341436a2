"""Sequences of several lengths in one call: where each lies, checked once, and one by one."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from tesseral._errors import DtypeError, ParameterError, ShapeError
from tesseral.attention.problem import AttentionArrays, AttentionProblem
from tesseral.core import PackedTensor
from tesseral.core._arrays import Array, to_numpy

Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sequences:
    """Where the sequences of a call lie in its arrays. Checked, in int64, on the host.

    Attributes
    ----------
    q_starts, q_lens : int64 array of shape (n_sequences,), C order
        Sequence ``s`` has rows ``q_starts[s]`` to ``q_starts[s] + q_lens[s]`` of a query of
        shape (total_q, q_heads, head_dim). The spans follow one another and cover all rows.
    kv_starts, kv_lens : int64 array of shape (n_sequences,), C order
        The same of keys (total_k, kv_heads, head_dim) and values (total_k, kv_heads,
        value_dim). With ``block_tables`` the starts are zero.
    block_tables : int64 array of shape (n_sequences, max_blocks), C order, or None
        With it, keys and values are pools (n_blocks, block_size, kv_heads, head_dim or
        value_dim): token ``t`` of sequence ``s`` is row ``t % block_size`` of block
        ``block_tables[s, t // block_size]``. Entries past the last block that
        ``kv_lens[s]`` needs are undefined and may be anything, negative numbers included.
    """

    q_starts: Integers
    q_lens: Integers
    kv_starts: Integers
    kv_lens: Integers
    block_tables: Integers | None = None

    def __len__(self) -> int:
        return len(self.q_lens)

    @property
    def longest(self) -> tuple[int, int]:
        """Most queries and most keys that one sequence has."""
        return int(self.q_lens.max(initial=0)), int(self.kv_lens.max(initial=0))

    def spans(self) -> Iterator[tuple[slice, slice]]:
        """Yield, for each sequence, the rows of its queries and of its keys."""
        starts = zip(self.q_starts.tolist(), self.q_lens.tolist(), strict=True)
        others = zip(self.kv_starts.tolist(), self.kv_lens.tolist(), strict=True)
        for (q_start, q_len), (kv_start, kv_len) in zip(starts, others, strict=True):
            yield slice(q_start, q_start + q_len), slice(kv_start, kv_start + kv_len)


def split(
    problem: AttentionProblem, arrays: AttentionArrays, sequences: Sequences
) -> Iterator[tuple[AttentionProblem, AttentionArrays]]:
    """Yield each sequence as a dense call of its own.

    Parameters
    ----------
    problem : AttentionProblem
        The call; its batch counts sequences, its lengths are those of the longest.
    arrays : AttentionArrays
        Query (total_q, q_heads, head_dim), keys and values as ``sequences`` says.
    sequences : Sequences
        Where each sequence lies.

    Yields
    ------
    AttentionProblem, AttentionArrays
        The dense call, of batch 1. Its arrays are views, but for keys and values from a
        pool, which are gathered.
    """
    slopes = arrays.alibi_slopes
    for s, (queries, keys) in enumerate(sequences.spans()):
        key, value = (
            _tokens(array, keys, sequences.block_tables, s) for array in (arrays.key, arrays.value)
        )
        alone = dataclasses.replace(
            problem, batch=1, q_len=queries.stop - queries.start, kv_len=keys.stop - keys.start
        )
        yield (
            alone,
            dataclasses.replace(
                arrays,
                query=heads_first(arrays.query[queries]),
                key=heads_first(key),
                value=heads_first(value),
                alibi_slopes=slopes if slopes is None or slopes.ndim == 1 else slopes[s : s + 1],
            ),
        )


def spans_from_cumulative(where: str, name: str, cumulative: Array) -> tuple[Integers, Integers]:
    """Return starts and lengths of sequences that follow one another.

    Parameters
    ----------
    where, name : str
        Names of the calling function and of the argument, for messages.
    cumulative : int32 or int64 array of shape (n_sequences + 1,)
        Where each sequence starts and, last, where the last one ends.

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If it is no array of that kind, does not start at 0, or decreases.
    """
    edges = _integers(where, name, cumulative, axes="n_sequences + 1")
    if len(edges) == 0 or edges[0] != 0:
        first = f"starts at {edges[0]}" if len(edges) else "is empty"
        raise ParameterError(
            f"{where}: {name} must start at 0 and end at the number of tokens, but {first}."
        )
    lengths = np.diff(edges)
    if lengths.min(initial=0) < 0:
        at = int(np.argmax(lengths < 0))
        raise ParameterError(
            f"{where}: {name} must never decrease, but goes from {edges[at]} to {edges[at + 1]} "
            f"at sequence {at}."
        )
    return edges[:-1], lengths


def check_block_tables(
    where: str, tables: Array, lengths: Integers, pool: tuple[int, ...]
) -> Integers:
    """Return the block tables on the host, once every entry that is needed lies in the pool.

    Parameters
    ----------
    where : str
        Name of the calling function; starts messages.
    tables : int32 or int64 array of shape (n_sequences, max_blocks)
        Blocks of each sequence, in the order of its tokens.
    lengths : int64 array of shape (n_sequences,)
        Number of keys of each sequence.
    pool : tuple of int
        Shape of the pool: (n_blocks, block_size, ...).

    Raises
    ------
    ShapeError, DtypeError, ParameterError
        If it is no array of that kind, is too narrow for a length, or points outside the pool.
    """
    n_blocks, block_size = pool[:2]
    blocks = _integers(where, "block_tables", tables, axes="n_sequences, max_blocks")
    if len(blocks) != len(lengths):
        raise ShapeError(
            f"{where}: block_tables of shape {blocks.shape} must have one row for each of "
            f"{len(lengths)} sequences."
        )
    width = blocks.shape[1]
    needed = -(-lengths // block_size)
    if needed.max(initial=0) > width:
        at = int(np.argmax(needed))
        raise ParameterError(
            f"{where}: sequence {at} has {lengths[at]} keys, but its row of block_tables holds "
            f"{width} blocks of {block_size}, room for {width * block_size}."
        )
    # read without sign, a negative number is larger than any pool
    if blocks.view(np.uint64).max(initial=0) < n_blocks:
        return blocks
    outside = (blocks < 0) | (blocks >= n_blocks)
    outside &= np.arange(width) < needed[:, None]
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ParameterError(
            f"{where}: block_tables[{row}, {column}] = {blocks[row, column]} points outside the "
            f"pool of {n_blocks} blocks; they are numbered from 0."
        )
    return blocks


def check_lengths(where: str, lengths: Array) -> Integers:
    """Return ``seq_lens`` of shape (n_sequences,) on the host; each is at least 0."""
    found = _integers(where, "seq_lens", lengths, axes="n_sequences")
    if found.min(initial=0) < 0:
        at = int(np.argmin(found))
        raise ParameterError(f"{where}: seq_lens[{at}] = {found[at]} must be at least 0.")
    return found


def _integers(where: str, name: str, array: Array, *, axes: str) -> Integers:
    """Return an int32 or int64 array with the given axes as int64 on the host."""
    kind = str(getattr(array, "dtype", "")).rpartition(".")[2]
    if not kind or not array_api_compat.is_array_api_obj(array):
        raise DtypeError(
            f"{where}: {name} must be an int32 or int64 array of shape ({axes}), "
            f"got {type(array).__name__}."
        )
    if kind not in ("int32", "int64"):
        raise DtypeError(f"{where}: {name} must be int32 or int64, got {array.dtype}.")
    if array.ndim != axes.count(",") + 1:
        raise ShapeError(f"{where}: {name} must have shape ({axes}), got {tuple(array.shape)}.")
    return np.ascontiguousarray(to_numpy(array), dtype=np.int64)


def _tokens(
    array: Array | PackedTensor, keys: slice, tables: Integers | None, s: int
) -> Array | PackedTensor:
    """Return keys or values of sequence ``s``: (kv_len, kv_heads, head_dim or value_dim)."""
    if tables is None:
        return array[keys]
    blocks = tables[s, : -(-keys.stop // array.shape[1])]
    return _map(array, lambda part: _gather(part, blocks)[: keys.stop])


def _gather(pool: Array, blocks: Integers) -> Array:
    """Return some blocks of a pool, joined along their tokens."""
    xp = array_api_compat.array_namespace(pool)
    index = xp.asarray(blocks, device=array_api_compat.device(pool))
    taken = xp.take(pool, index, axis=0)
    return xp.reshape(taken, (-1, *pool.shape[2:]))


def heads_first(array: Array | PackedTensor) -> Any:
    """Return (length, heads, dim) as (1, heads, length, dim), a view."""

    def turn(part: Array) -> Array:
        xp = array_api_compat.array_namespace(part)
        return xp.permute_dims(part, (1, 0, 2))[None]

    return _map(array, turn)


def _map(array: Array | PackedTensor, change: Any) -> Array | PackedTensor:
    """Apply a change of the leading axes to an array, or to all that a PackedTensor holds."""
    if not isinstance(array, PackedTensor):
        return change(array)
    offset = None if array.offset is None else change(array.offset)
    return dataclasses.replace(
        array, data=change(array.data), scale=change(array.scale), offset=offset
    )
