"""What is measured, and what must hold."""

from dataclasses import dataclass, field
from typing import Any

from tesseral.bench.llm.cuda import EIGHT_B

PARTS = ("rates", "logits", "decode", "turns", "peer", "prefill", "million")
"""What is measured, in this order."""

OURS, COPIED, OFFLOADING = "ours", "our pinned copy", "DynamicCache(offloading=True)"

FASTER = {OFFLOADING: 2.0, COPIED: 1.2}
"""How many times as many tokens a second ours must decode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes of everything.

    Attributes
    ----------
    shape : dict
        Of the model that decodes and reads a prompt; a cut of it is ``layers`` deep.
    context, million : int
        Tokens of the contexts.
    gpu_bytes, million_bytes : int
        Device memory that may be taken, with each.
    host_bytes : int
        Memory of the host.
    layers : int
        Depth of the cut, for the longest context and for logits.
    steps : int
        Bounds the tokens decoded, the first ones not timed: two thirds are timed of ours and as
        many of our copy, in turns; of transformers' cache, whose steps are long, a quarter.
    new_tokens : int
        Tokens decoded after the longest prompt.
    check : int
        Tokens of the prompt whose logits are compared.
    chunk : int
        Tokens of a prompt that go through the model at once, at most.
    device : str
    """

    shape: dict[str, Any] = field(default_factory=lambda: EIGHT_B)
    context: int = 262_144
    million: int = 1_048_576
    gpu_bytes: int = 32 * 10**9
    million_bytes: int = 8 * 10**9
    host_bytes: int = 100 * 10**9
    layers: int = 4
    steps: int = 24
    new_tokens: int = 32
    check: int = 12_288
    chunk: int = 8192
    device: str = "cuda"


FULL = Plan()
QUICK = Plan(context=65_536, million=131_072, gpu_bytes=19 * 10**9, million_bytes=5 * 10**9)
SMOKE = Plan(
    shape={
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": False,
    },
    context=512,
    million=1024,
    gpu_bytes=0,  # found: what half of the layers take
    million_bytes=0,
    host_bytes=10**9,
    layers=4,
    steps=16,
    new_tokens=4,
    check=96,
    chunk=150,
    device="cpu",
)
