"""Which model, which sides, what is measured, and what must hold."""

from dataclasses import dataclass
from typing import Any

OURS = "tesseral W4A4KV4"
BFLOAT16 = "transformers bf16, SDPA"
LLAMA_CPP = "llama.cpp {}"

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8448,
    "tie_word_embeddings": False,
}
"""A Llama of 1.1 B parameters."""

TINY: dict[str, Any] = SHAPE | {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""One to try the benchmark itself on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes
    ----------
    shape : dict
        Of the random model.
    prompt : int
        Tokens that are read, and the context in which tokens are generated.
    short : int
        Tokens of a prompt whose time to the first new token is measured.
    generated : int
        Tokens that are generated in a repeat.
    repeats : int
        Turns of all sides.
    long : int
        Context at which peak memory is measured; 0 for none.
    reading_s : float
        Seconds that bfloat16 may take to read the prompt before only one in :data:`PART` tokens of
        it are read, and that a peer may take to read the long one before its memory is left out.
    turns_s : float
        Seconds of a side's turns after which it takes no other.
    """

    shape: dict[str, Any]
    prompt: int
    short: int
    generated: int
    repeats: int
    long: int
    reading_s: float = 60
    turns_s: float = 50


FULL = Plan(shape=SHAPE, prompt=2048, short=128, generated=32, repeats=3, long=8192)
QUICK = Plan(shape=SHAPE, prompt=2048, short=128, generated=16, repeats=1, long=0)
SMOKE = Plan(shape=TINY, prompt=64, short=16, generated=4, repeats=2, long=128)

BARS = (
    ("decode", BFLOAT16, 5.0),
    ("decode", LLAMA_CPP.format("Q4_0"), 1.0),
    ("prefill", BFLOAT16, 1.5),
    ("prefill", LLAMA_CPP.format("Q4_0"), 2.0),
)
"""What, against whom, and how many times as fast ours must be."""

PART = 8
"""One in so many tokens of the prompt is read by a side that is slow."""

LARGEST_MEMORY = 0.42
"""Share of bfloat16's peak memory that ours may take at the long context."""
