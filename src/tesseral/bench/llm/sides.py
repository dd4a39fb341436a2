"""What is compared: a model in a process of its own, which reads prompts and generates.

Run as a program with a JSON description of a side, it answers one JSON request a line.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np

from tesseral.bench.memory import Peak
from tesseral.bench.timing import settle


class Side(Protocol):
    """A loaded model that holds the tokens it has read."""

    def prefill(self, tokens: list[int]) -> None:
        """Forget everything, read ``tokens`` and find the likeliest next one."""
        ...

    def decode(self, count: int) -> None:
        """Generate ``count`` tokens, the likeliest each time, and forget them again."""
        ...

    def weight_bytes(self) -> int:
        """Return how many bytes of weights a token reads."""
        ...


class TransformersSide:
    """A model directory under transformers: ours, or in bfloat16 with torch's attention."""

    def __init__(self, path: str, attention: str) -> None:
        import torch

        from tesseral import llm

        self._torch = torch
        self._model, _ = llm.load(path, dtype=torch.bfloat16)
        self._model.set_attn_implementation(attention)
        self._cache: Any = None
        self._next: Any = None

    def prefill(self, tokens: list[int]) -> None:
        """Read all tokens in one pass."""
        from tesseral.llm.evaluate import new_cache

        self._cache = None  # free before the next is made
        self._cache = new_cache(self._model)
        self._step(self._torch.tensor([tokens]))

    def decode(self, count: int) -> None:
        """Generate token by token."""
        first = self._next
        for _ in range(count):
            self._step(self._next)
        self._cache.crop(-count)
        self._next = first

    def fill(self, count: int) -> None:
        """Put random keys and values of ``count`` tokens behind those that were read."""
        for index, layer in enumerate(self._cache.layers):
            shape = (1, layer.keys.shape[1], count, layer.keys.shape[3])
            new = self._torch.randn(2, *shape, dtype=layer.keys.dtype)
            self._cache.update(*new, index)

    def allocate(self, tokens: list[int]) -> None:
        """Read all tokens without computing products: what they are made of is read.

        What is allocated inside of products is missing, and nothing else.
        """
        functional = self._torch.nn.functional

        def linear(x: Any, weight: Any, bias: Any = None) -> Any:
            del bias
            return x.new_empty(*x.shape[:-1], len(weight)).fill_(weight.sum())

        def attention(query: Any, key: Any, value: Any, **_: Any) -> Any:
            return self._torch.empty_like(query).fill_(key.sum() + value.sum())

        with (
            patch.object(functional, "linear", linear),
            patch.object(functional, "scaled_dot_product_attention", attention),
        ):
            self.prefill(tokens)

    def weight_bytes(self) -> int:
        """Count blocks, the last norm and the output layer."""
        model = self._model
        parts = [model.model.layers, model.model.norm, model.get_output_embeddings()]
        tensors = [t for part in parts for t in (*part.parameters(), *part.buffers())]
        return sum(tensor.nbytes for tensor in tensors)

    def _step(self, tokens: Any) -> None:
        from tesseral.llm.cache_argument import CACHE

        with self._torch.inference_mode():
            output = self._model(tokens, **{CACHE: self._cache}, use_cache=True, logits_to_keep=1)
        self._cache = output[CACHE]
        self._next = output.logits[:, -1:].argmax(-1)


class LlamaCppSide:
    """A GGUF file under llama.cpp."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        import llama_cpp
        from llama_cpp import Llama

        self._path, self._library = Path(path), llama_cpp
        self._llama = Llama(
            path,
            n_ctx=context,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=True,
            verbose=False,
        )

    def prefill(self, tokens: list[int]) -> None:
        """Read all tokens, 512 at a time, which is llama.cpp's default."""
        self._llama.reset()
        self._llama.eval(tokens)

    def decode(self, count: int) -> None:
        """Generate token by token."""
        before = self._llama.n_tokens
        for _ in range(count):
            self._llama.eval([self._next()])
        self._llama.n_tokens = before

    def weight_bytes(self) -> int:
        """Return the size of the file, which a token reads but for the embeddings."""
        return self._path.stat().st_size

    def _next(self) -> int:
        """Return the likeliest token; the binding's own way takes milliseconds."""
        logits = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._llama.n_vocab(),)).argmax())


def llama_cpp_loss(path: Path, tokens: list[int]) -> float:
    """Return the mean negative log-likelihood of all tokens but the first under llama.cpp."""
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=len(tokens), n_batch=len(tokens), logits_all=True, verbose=False)
    llama.eval(tokens)
    scores = llama.scores[: len(tokens) - 1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    told = scores[np.arange(len(tokens) - 1), tokens[1:]]
    return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - told))


def make(description: dict[str, Any]) -> Side:
    """Return the side that a description names."""
    if description["kind"] == "llama.cpp":
        return LlamaCppSide(
            description["path"], description["context"], int(os.environ["OMP_NUM_THREADS"])
        )
    return TransformersSide(description["path"], description["attention"])


def _imports(kind: str) -> None:
    """Import what a side needs, so that its memory is not counted."""
    if kind == "llama.cpp":
        import llama_cpp  # noqa: F401
    else:
        import tesseral.llm  # noqa: F401


def answer(side: Side, peak: Peak, request: dict[str, Any]) -> dict[str, Any]:
    """Do what a request asks and return what was measured."""
    settle()
    start = time.perf_counter()
    getattr(side, request.pop("do"))(**request)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_bytes": peak.bytes(), "weight_bytes": side.weight_bytes()}


def main() -> None:
    """Answer requests until there are no more."""
    description = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    _imports(description["kind"])
    peak = Peak()
    side = make(description)
    for line in sys.stdin:
        answers.write(json.dumps(answer(side, peak, json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
