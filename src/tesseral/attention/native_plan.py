"""How the native CPU kernels cut a call: sizes from the caches, work for every thread."""

from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import gcd
from typing import Literal, TypeAlias

from tesseral import _native
from tesseral.attention.plan import TilePlan
from tesseral.attention.problem import AttentionProblem
from tesseral.runtime.cpu import CacheSizes

Kernel: TypeAlias = Literal["packed", "streamed", "tiles"]
"""Keys packed once for many rows, read in place for few, or packed for the tiles of AMX."""

STREAM_ROWS = 24
"""Rows, query heads of a group counted, up to which packing keys costs more than it saves.

Measured with AVX-512 on a Zen 4, for all types; at 32 rows some gain and some lose.
"""

TILED_STREAM_ROWS = 8
"""The same where packed keys are multiplied by tiles.

Measured on a Xeon with AMX, 8 heads and 4096 keys: alike at 8 rows, twice as fast at 16.
"""

THREAD_BYTES = 2**19
"""Keys and values for which another thread is worth waking."""

THREAD_PRODUCTS = 2**20
"""Products of queries, keys and values for which another thread is worth waking."""

ROW_MULTIPLE = 12
"""Rows of the widest register tile; the narrower ones divide it."""

TILE_ROWS = 32
"""Rows that are multiplied together by tiles."""

LEAST_ROWS = 8 * ROW_MULTIPLE
"""Rows of a strip, at least: fewer would pack the keys too often."""

TASKS_A_THREAD = 4
"""Tasks that a thread should find, so that all end at about the same time."""

VECTORS = {"amx": "avx512_bf16"}
"""For targets whose products are of tiles, the one that has their vectors."""

L2_SHARES = {"avx2": (4.0, 0.5)}
"""How many L2 caches a strip takes at most, and a packed block; elsewhere a half and a quarter.

Measured on a Zen 3 at head dimensions 64, 128 and 256: rows, which pass by once a block, may come
from the L3 cache, and so many more share what was packed.
"""

LEAST_SPLIT_BYTES = 2**18
"""Keys and values that a task should read, at least, when a strip is shared among several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePlan(TilePlan):
    """Tiles of the native kernels: level 1 as in the base class, level 2 is the register tile.

    Attributes
    ----------
    kernel : {"packed", "streamed", "tiles"}
        Whether keys are packed for many rows, read in place for few, or packed for products of
        whole tiles, which AMX has for bfloat16.
    strip_rows : int
        Rows of a strip of queries, heads of a group counted, that share packed keys.
    split_keys : int
        Keys of a task; more are shared among several tasks and their states merged. 0 = all.
    bf16_dot : bool
        Whether pairs of bfloat16 are multiplied as they are, or widened to float32.
    target : str
        Instruction set.
    threads : int
        Threads that share the tasks.
    """

    kernel: Kernel
    strip_rows: int
    split_keys: int
    bf16_dot: bool
    target: str
    threads: int


@lru_cache(maxsize=1024)
def plan_native(
    problem: AttentionProblem, caches: CacheSizes, target: str, threads: int
) -> NativePlan:
    """Return the tiles for a call.

    A strip of queries, with its output in float32, takes at most half of the L2 cache of a core,
    and strips are about equally long; the packed keys and values of a block take a quarter. Some
    targets have other shares, :data:`L2_SHARES`.
    """
    rows = problem.group * max(1, problem.q_len)
    pairs = max(1, problem.batch * problem.kv_heads)
    width = problem.head_dim + problem.value_dim
    threads = _useful_threads(problem, threads)
    all_bfloat16 = _is_all_bfloat16(problem)
    tiled = all_bfloat16 and target == "amx" and bf16_dot_pays(target, streamed=False)
    streamed = rows <= (TILED_STREAM_ROWS if tiled else STREAM_ROWS)
    tiles = tiled and not streamed
    q_tile = max(1, problem.q_len)
    strip_share, block_share = L2_SHARES.get(target, (0.5, 0.25))
    if not streamed:
        row_bytes = (2 if tiles else 4) * problem.head_dim + 4 * problem.value_dim
        multiple = TILE_ROWS if tiles else ROW_MULTIPLE
        q_tile = _strip(
            problem, pairs, threads, int(caches.l2 * strip_share) // row_bytes, multiple
        )
    tasks = pairs * -(-max(1, problem.q_len) // q_tile)
    key_block = _down(int(caches.l2 * block_share) // (4 * width), 64)
    plan = NativePlan(
        batch_tile=1,
        head_tile=1,
        q_tile=q_tile,
        k_tile=max(64, min(key_block, _native.ATTENTION_MAX_KEY_BLOCK)),
        workspace_bytes=0,
        kernel=_kernel(streamed=streamed, tiles=tiles),
        strip_rows=q_tile * problem.group,
        split_keys=_split_keys(problem, tasks, threads, streamed=streamed),
        bf16_dot=all_bfloat16 and bf16_dot_pays(target, streamed=streamed),
        target=target,
        threads=threads,
    )
    return replace(plan, workspace_bytes=_workspace_bytes(problem, plan))


def _kernel(*, streamed: bool, tiles: bool) -> Kernel:
    if streamed:
        return "streamed"
    return "tiles" if tiles else "packed"


@cache
def bf16_dot_pays(target: str, *, streamed: bool) -> bool:
    """Return whether products of bfloat16 pairs beat those of float32 here; measured once.

    Some chips issue ``vdpbf16ps``, which does twice the work, at a quarter of the rate of a
    float32 multiply-add; others at the same rate. Few rows are multiplied by vectors also where
    many are by tiles.
    """
    target = VECTORS.get(target, target) if streamed else target
    fastest = {
        kind: max(_rate(kind, target) for _ in range(3)) for kind in ("dot_bf16", "fma_fp32")
    }
    return fastest["dot_bf16"] > 1.2 * fastest["fma_fp32"]


def _rate(kind: str, target: str) -> float:
    operations, seconds = _native.product_rate(kind, 20_000, 1, target)
    return operations / seconds if operations else 0.0


def _useful_threads(problem: AttentionProblem, threads: int) -> int:
    """Return how many of the threads have enough to do to be worth waking."""
    numbers = problem.batch * problem.kv_heads * problem.kv_len
    numbers *= problem.head_dim + problem.value_dim
    worth = max(
        numbers * _itemsize(problem) / THREAD_BYTES,
        numbers * problem.group * problem.q_len / THREAD_PRODUCTS,
    )
    return max(1, min(threads, int(worth)))


def _split_keys(problem: AttentionProblem, tasks: int, threads: int, *, streamed: bool) -> int:
    """Return the keys of a task if a strip's are shared among several, or 0."""
    # reading is shared out finely, as threads finish it at different times
    wanted = TASKS_A_THREAD * threads if streamed else threads
    if threads == 1 or tasks >= wanted:
        return 0
    least = LEAST_SPLIT_BYTES // (_itemsize(problem) * (problem.head_dim + problem.value_dim))
    keys = max(-(-problem.kv_len * tasks // wanted), least)
    return keys if keys < problem.kv_len else 0


def _workspace_bytes(problem: AttentionProblem, plan: NativePlan) -> int:
    """Return the memory of all threads, and of the states of strips whose keys are shared."""
    call = _native.AttentionCall()
    call.key = _described(problem, problem.key_format, problem.head_dim)
    call.value = _described(problem, problem.value_format, problem.value_dim)
    call.element = getattr(_native.Element, problem.dtype)
    call.strip_rows, call.key_block = plan.strip_rows, plan.k_tile
    call.bf16_dot = plan.bf16_dot
    scratch = plan.threads * call.scratch_bytes(plan.target)
    if plan.split_keys == 0:
        return scratch
    parts = -(-problem.kv_len // plan.split_keys)
    rows = problem.batch * problem.q_heads * problem.q_len
    return scratch + 4 * parts * rows * (-(-problem.value_dim // 16) * 16 + 2)


def _described(problem: AttentionProblem, form: str, width: int) -> _native.KeyValueRows:
    name = problem.dtype if form == "dense" else form.replace("packed", "bits")
    return _native.KeyValueRows(getattr(_native.Element, name), width, _native.Rows(0, 0, 0, 0))


def _strip(
    problem: AttentionProblem, pairs: int, threads: int, most_rows: int, multiple: int
) -> int:
    """Return the query positions of a strip: strips of like length that fill register tiles."""
    q_len, group = max(1, problem.q_len), problem.group
    step = multiple // gcd(multiple, group)
    longest = _down(most_rows // group, step)
    wanted = -(-TASKS_A_THREAD * threads // pairs)
    strips = max(-(-q_len // longest), min(wanted, q_len * group // LEAST_ROWS))
    return min(q_len, _up(-(-q_len // strips), step))


def _itemsize(problem: AttentionProblem) -> int:
    return 4 if problem.dtype == "float32" else 2


def _is_all_bfloat16(problem: AttentionProblem) -> bool:
    return problem.dtype == "bfloat16" and problem.key_format == problem.value_format == "dense"


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _down(number: int, multiple: int) -> int:
    return max(multiple, number // multiple * multiple)
