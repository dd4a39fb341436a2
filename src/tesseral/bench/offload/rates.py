"""How fast the host's memory is read: by the CPU, by its attention, and over the link."""

from time import perf_counter
from typing import Any

import torch

from tesseral.attention import attention
from tesseral.bench.ceilings import make_reader
from tesseral.bench.offload.cases import Plan
from tesseral.llm.cooperative.conveyor import copy_rows
from tesseral.llm.cooperative.link import Link
from tesseral.llm.cooperative.room import Room, encode, plain_codec
from tesseral.runtime.threads import threads_beside_torch

_TOKENS = 262_144
_REPEATS = 5


def host_rates(plan: Plan) -> dict[str, Any]:
    """Return rates in bytes a second: of attention by format, of the link, and of both at once."""
    threads = threads_beside_torch()
    size = (1 << 30) if plan.device == "cuda" else 1 << 24
    found: dict[str, Any] = {
        "threads": threads,
        "read": size / _fastest(make_reader(size, threads)),
    }
    dtype = torch.float32 if plan.device == "cpu" else torch.bfloat16
    for bits in (16, 8, 4):
        room = _room(plan, bits, dtype)
        query = torch.randn(1, plan.shape["num_attention_heads"], 1, _width(plan)).to(dtype)
        states = room.states(0, room.room)
        seconds = _fastest(lambda q=query, s=states: attention(q, *s))
        found[f"attention, {bits} bits"] = room.nbytes / seconds
        if bits == 16 and plan.device == "cuda":
            found |= _link_rates(room, query, states)
    return found


def _link_rates(room: Room, query: torch.Tensor, states: Any) -> dict[str, float]:
    targets = [torch.empty_like(array, device="cuda") for array in room.flat]

    def up() -> None:
        for target, source in zip(targets, room.flat, strict=True):
            copy_rows(target, source)

    def down() -> None:
        for target, source in zip(targets, room.flat, strict=True):
            copy_rows(source, target)

    def wait(copies: Any) -> None:
        copies()
        torch.cuda.synchronize()

    found = {
        "link up": room.nbytes / _fastest(lambda: wait(up)),
        "link down": room.nbytes / _fastest(lambda: wait(down)),
    }
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    up()
    up()
    end.record()
    began, count = perf_counter(), 0
    while not end.query():
        attention(query, *states)
        count += 1
    elapsed = perf_counter() - began
    torch.cuda.synchronize()
    found["attention beside link"] = count * room.nbytes / elapsed
    found["link beside attention"] = 2 * room.nbytes / (start.elapsed_time(end) / 1e3)
    return found


def _room(plan: Plan, bits: int, dtype: torch.dtype) -> Room:
    """Return a layer's keys and values in the host's memory, not zero."""
    tokens = _TOKENS if plan.device == "cuda" else 256
    heads, width = plan.shape["num_key_value_heads"], _width(plan)
    codec = plain_codec(bits, bits, torch.device("cpu"))
    piece = torch.randn(1, heads, 256, width).to(dtype)
    states = encode(codec, piece, piece)
    link = Link(torch.device(plan.device))
    nothing = encode(codec, piece[:, :, :0], piece[:, :, :0])
    room = Room(nothing, tokens, link.host_array)
    for start in range(0, tokens, 256):
        room.put(states, start)
    return room


def _width(plan: Plan) -> int:
    width: int = plan.shape["head_dim"]
    return width


def _fastest(call: Any) -> float:
    call()
    best = float("inf")
    for _ in range(_REPEATS):
        began = perf_counter()
        call()
        best = min(best, perf_counter() - began)
    return best
