"""What a kernel is told of a call: the structure of ``call.h``."""

import ctypes
from typing import ClassVar

POINTERS = (
    "query", "key", "value", "output", "lse", "mask", "sinks", "slopes", "spans", "tables",
    "seen", "part_output", "part_lse",
)  # fmt: skip
STEPS = ("query_step", "key_step", "value_step", "output_step", "lse_step")
SIZES = (
    "batch", "q_heads", "kv_heads", "group", "q_len", "kv_len", "left", "right", "splits",
    "table_width", "block_size", "slope_batch",
)  # fmt: skip


class Call(ctypes.Structure):
    """Addresses, steps in numbers (batch, head, position), sizes and factors."""

    _fields_: ClassVar = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_longlong * 3) for name in STEPS),
        ("mask_step", ctypes.c_longlong * 4),
        ("seen_step", ctypes.c_longlong * 3),
        ("part_step", ctypes.c_longlong * 3),
        ("parts_step", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in SIZES),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("query_factor", ctypes.c_float),
    ]
