"""Native kernels of tesseral; callers use the checked wrappers of core, runtime and attention."""

import enum
from typing import Any

ATTENTION_MAX_DIM: int
ATTENTION_MAX_KEY_BLOCK: int
COMPILER: str
DENSE_ROWS_MOST: int
DENSE_ROWS_MULTIPLE: int
HEAD_ROWS_MULTIPLE: int
LINEAR_INT4_MAX_K: int

class Element(enum.Enum):
    float32 = 0
    bfloat16 = 1
    float16 = 2
    bits8 = 3
    bits4 = 4
    bits2 = 5
    boolean = 6

class Rows:
    def __init__(self, data: int, batch: int, head: int, row: int, /) -> None: ...

class KeyValueRows:
    scale_element: Element
    scale: Rows
    offset: Rows
    def __init__(self, element: Element, width: int, rows: Rows, /) -> None: ...

class DenseMask:
    def __init__(self, element: Element, rows: Rows, column: int, /) -> None: ...

class AttentionCall:
    element: Element
    query: Rows
    output: Rows
    lse: Rows
    key: KeyValueRows
    value: KeyValueRows
    q_heads: int
    kv_heads: int
    scale: float
    softcap: float
    slopes_sequence: int
    left: int
    right: int
    mask: DenseMask
    strip_rows: int
    key_block: int
    split_keys: int
    stream_rows: int
    bf16_dot: bool
    poison: bool
    def __init__(self) -> None: ...
    def set_batch(self, batch: int, q_len: int, kv_len: int) -> None: ...
    def set_sequences(
        self,
        q_starts: Any,
        q_lens: Any,
        kv_starts: Any,
        kv_lens: Any,
        blocks: Any | None,
        block_size: int,
    ) -> None: ...
    def scratch_bytes(self, target: str) -> int: ...
    def set_target(self, name: str, threads: int) -> None: ...
    def copy(self) -> AttentionCall: ...
    def run(
        self,
        query: int,
        key: int,
        key_scale: int,
        key_offset: int,
        value: int,
        value_scale: int,
        value_offset: int,
        mask: int,
        sinks: int,
        slopes: int,
        output: int,
        lse: int,
    ) -> None: ...

def cpu_brand() -> str: ...
def cpu_features() -> list[tuple[str, bool, bool]]: ...
def cpu_targets() -> list[tuple[str, list[str]]]: ...
def share_openmp(library: str) -> bool: ...
def product_rate(kind: str, rounds: int, threads: int, target: str) -> tuple[float, float]: ...
def read_rate(data: Any, threads: int, target: str) -> tuple[float, float]: ...
def linear_int4(activations: Any, weight: Any, out: Any, threads: int, target: str) -> None: ...
def linear_int4_floats(
    activations: int,
    scale: int,
    m: int,
    k: int,
    stride: int,
    group: int,
    bf16: bool,
    weights: list[tuple[int, int, int, int, int]],
    threads: int,
    target: str,
) -> None: ...
def linear_int4_takes_groups(k: int, group: int) -> bool: ...
def quantize_rows(
    element: str,
    rows: int,
    stride: int,
    m: int,
    left: int,
    right: int,
    left_factor: int,
    right_factor: int,
    clip: int,
    bits: int,
    codes: int,
    codes_stride: int,
    scale: int,
    threads: int,
    target: str,
) -> None: ...
def transform_rows(
    element: str,
    rows: int,
    stride: int,
    m: int,
    left: int,
    right: int,
    left_factor: int,
    right_factor: int,
    out: int,
    threads: int,
    target: str,
) -> None: ...
def weight_only(
    element: str,
    rows: int,
    stride: int,
    m: int,
    k: int,
    group: int,
    bf16: bool,
    weights: list[tuple[int, int, int, int, int]],
    threads: int,
    target: str,
) -> None: ...
def norm_rows(
    element: str,
    rows: int,
    stride: int,
    m: int,
    n: int,
    weight: int,
    epsilon: float,
    out: int,
    threads: int,
    target: str,
) -> None: ...
def transform_heads(
    element: str,
    sizes: tuple[int, int, int],
    dim: int,
    rows: int,
    steps: tuple[int, int, int],
    factor: int,
    out: int,
    out_steps: tuple[int, int, int],
    threads: int,
    target: str,
) -> None: ...
def encode_heads(
    element: str,
    sizes: tuple[int, int, int],
    dim: int,
    rows: int,
    steps: tuple[int, int, int],
    factor: int,
    clip: int,
    bits: int,
    codes: int,
    code_steps: tuple[int, int, int],
    scale: int,
    offset: int,
    scale_steps: tuple[int, int, int],
    threads: int,
    target: str,
) -> None: ...
def dense_rows(
    element: str,
    rows: int,
    weight: int,
    out: int,
    m: int,
    n: int,
    k: int,
    threads: int,
    target: str,
) -> None: ...

class QuantizedLinears:
    def __init__(
        self,
        left: int,
        right: int,
        left_factor: int,
        right_factor: int,
        clip: int,
        bits: int,
        group: int,
        weights: list[tuple[int, int, int, int]],
        /,
    ) -> None: ...
    def run(
        self,
        element: str,
        rows: int,
        stride: int,
        m: int,
        outs: list[int],
        bf16: bool,
        threads: int,
        target: str,
        /,
    ) -> None: ...

class DecoderBlock:
    def __init__(
        self,
        element: str,
        head_dim: int,
        attention_norm: tuple[int, float],
        mlp_norm: tuple[int, float],
        attention_input: QuantizedLinears,
        attention_output: QuantizedLinears,
        mlp_input: QuantizedLinears,
        mlp_hidden: QuantizedLinears,
        query_factor: int,
        key: tuple[int, int, int],
        value: tuple[int, int, int],
        /,
    ) -> None: ...
    def before(
        self,
        m: int,
        hidden: int,
        cosine: int,
        sine: int,
        rotary_step: int,
        query: int,
        key: tuple[int, int, int, tuple[int, int, int], tuple[int, int, int]],
        value: tuple[int, int, int, tuple[int, int, int], tuple[int, int, int]],
        threads: int,
        target: str,
        /,
    ) -> None: ...
    def after(
        self, m: int, attended: int, hidden: int, out: int, threads: int, target: str, /
    ) -> None: ...

class DecoderBlocks:
    def __init__(self, blocks: list[DecoderBlock]) -> None: ...
    def set_caches(
        self,
        caches: list[
            tuple[
                tuple[int, int, int, tuple[int, int, int], tuple[int, int, int]],
                tuple[int, int, int, tuple[int, int, int], tuple[int, int, int]],
            ]
        ],
    ) -> None: ...
    def token(
        self,
        m: int,
        hidden: int,
        out: int,
        cosine: int,
        sine: int,
        rotary_step: int,
        position: int,
        attention: AttentionCall,
        threads: int,
        target: str,
        /,
    ) -> None: ...
