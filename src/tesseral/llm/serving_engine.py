"""One model behind transformers' serving handlers, generating by our continuous batching.

transformers' handlers read messages, apply templates and write answers. Their model manager
loads what a client names and refuses attention that it does not know, so ours holds the one
model it is given; their generation manager shares one way of sampling among all requests and
knows no stop strings, so ours submits each request with its own.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import (
    CBGenerateManager,
    GenerationState,
    _StreamError,
    response_events_to_chunks,
)

from tesseral.llm.serving_sampling import SamplingManager
from tesseral.llm.serving_text import TextPieces

_REQUESTS_AT_ONCE = 16
"""Requests of full length that the cache is made to hold, if memory allows."""


_COLDEST = 0.01
"""Temperature below which the likeliest token is taken: scores over less may overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request, and all together, may ask for.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
        Tokens of a prompt, and to generate, at most.
    context : int
        Both together at most: what the model can take.
    requests : int
        Requests that run or wait at a time.
    """

    prompt_tokens: int
    new_tokens: int
    context: int
    requests: int


class OneModel(ModelManager):  # type: ignore[misc]  # untyped to mypy
    """A model manager with one loaded model, which it gives whatever it is asked for."""

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
        # not the base class's, which would load something
        self.force_model, self._pair = name, (model, tokenizer)

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """Return the name as it is; transformers' would add a revision."""
        return model_id

    def load_model_and_processor(self, *_: Any, **__: Any) -> tuple[PreTrainedModel, Tokenizer]:
        """Return the model and its tokenizer."""
        return self._pair

    def shutdown(self) -> None:
        """Do nothing: whoever gave the model keeps it."""


class Engine(CBGenerateManager):  # type: ignore[misc]
    """Runs requests of a server; transformers' handlers call it.

    Parameters
    ----------
    name : str
        What clients call the model.
    model, tokenizer
        As :func:`~tesseral.llm.load` returns them.
    limits : Limits
        What may be asked for.
    """

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: Tokenizer, limits: Limits
    ) -> None:
        self.name, self.limits = name, limits
        self._cb = SamplingManager(model, [limits.context] * _REQUESTS_AT_ONCE)
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._streams: dict[str, _Stream] = {}
        state, models = _State(self), OneModel(name, model, tokenizer)
        self.chat = _Chat(models, state)
        self.completion = _Completion(models, state)

    @property
    def n_active(self) -> int:
        """Requests that run or wait."""
        return len(self._streams)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Generate in a thread of its own; at the end, requests not done are dropped."""
        self._cb.start()
        try:
            yield
        finally:
            self._cb.stop(block=True, hard_stop=True)
            self._cb.destroy()

    def init_cb(self, model: PreTrainedModel, gen_config: GenerationConfig) -> None:
        """Do nothing: it was made with the engine."""

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: Tokenizer,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> "tuple[asyncio.Queue[Any], _Stream]":
        """Submit a request; its text comes in the queue and ends with ``None``.

        Raises
        ------
        HTTPException
            400 if the prompt is empty or too long, 429 if there are too many requests, 503 if the
            server ends.
        """
        del model
        prompt = [int(token) for token in inputs["input_ids"]]
        gen_config.max_new_tokens = self._new_tokens(len(prompt), gen_config.max_new_tokens)
        if max(prompt) >= self._vocabulary:
            raise HTTPException(400, "the prompt has tokens that are not in the vocabulary.")
        if self.n_active >= self.limits.requests:
            raise HTTPException(429, f"{self.n_active} requests are running or waiting; try later.")
        self._check_alive(request_id)
        stops = gen_config.stop_strings or []
        text = TextPieces(
            processor,
            [stops] if isinstance(stops, str) else stops,
            skip_special_tokens=response_parser is None,
        )
        stream = self._streams[request_id] = _Stream(self, request_id, text, response_parser)
        # before the request is: its first token may come at once
        self._cb.register_result_handler(request_id, stream.take)
        accepted = self._cb.add_request(
            prompt,
            request_id=request_id,
            max_new_tokens=gen_config.max_new_tokens,
            streaming=True,
            eos_token_id=gen_config.eos_token_id,
            **_sampling(gen_config),
        )
        if accepted is None:
            stream.cancel()
            raise HTTPException(503, "the server is about to end.")
        return stream.queue, stream

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: Tokenizer,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, list[int]]:
        """Return text, length of the prompt and tokens of a request when it is done.

        Raises
        ------
        HTTPException
            As :meth:`generate_streaming`; 500 if the request failed.
        """
        queue, stream = self.generate_streaming(model, processor, inputs, gen_config, request_id)
        pieces: list[str] = []
        try:
            while (piece := await queue.get()) is not None:
                if isinstance(piece, _StreamError):
                    raise HTTPException(500, f"generation failed: {piece.msg}")
                pieces.append(piece)
        finally:
            stream.cancel()  # a request that is done is not there any more
        return "".join(pieces), len(inputs["input_ids"]), stream.tokens

    def release(self, request_id: str, *, cancel: bool) -> None:
        """Forget a request, and stop it if it is not done."""
        self._streams.pop(request_id, None)
        if cancel:
            self._cb.cancel_request(request_id)
            with self._cb.output_router._lock:
                self._cb.output_router.result_handlers.pop(request_id, None)

    def _new_tokens(self, prompt: int, wanted: int | None) -> int:
        """Return how many tokens to generate at most."""
        limits = self.limits
        if prompt < 1:
            raise HTTPException(400, "the prompt is empty.")
        if prompt > limits.prompt_tokens:
            raise HTTPException(
                400, f"the prompt has {prompt} tokens; at most {limits.prompt_tokens} are taken."
            )
        room = limits.context - prompt
        if wanted is None:
            wanted = min(limits.new_tokens, room)
        if wanted > limits.new_tokens:
            raise HTTPException(
                400, f"{wanted} tokens are asked for; at most {limits.new_tokens} are generated."
            )
        if not 1 <= wanted <= room:
            raise HTTPException(
                400,
                f"the prompt of {prompt} tokens and {wanted} new ones do not fit into the "
                f"{limits.context} that the model can take.",
            )
        return wanted


class _Stream:
    """What comes of one request: takes outputs on the event loop, puts text into a queue."""

    def __init__(self, engine: Engine, request_id: str, text: TextPieces, parser: Any) -> None:
        self._engine, self._id, self._text, self._parser = engine, request_id, text, parser
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.tokens: list[int] = []
        self._done = False
        if parser is not None:
            self._put(response_events_to_chunks(parser.initial_events))

    @property
    def total_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens)

    def take(self, output: Any) -> None:
        """Take an output of transformers' manager."""
        if self._done:
            return
        for token in output.generated_tokens[len(self.tokens) :]:
            self.tokens.append(token)
            self._give(self._text.feed(token))
            if self._text.stopped:
                self._end(cancel=True)
                return
        if output.error is not None:
            # it is put between quotes as it is
            self._put([_StreamError(json.dumps(output.error)[1:-1])])
            self._end(cancel=False)
        elif output.is_finished():
            self._give(self._text.finish())
            self._end(cancel=False)

    def cancel(self) -> None:
        """Stop the request, unless it is done."""
        if not self._done:
            self._end(cancel=True)

    def _give(self, text: str) -> None:
        if text:
            parser = self._parser
            self._put([text] if parser is None else response_events_to_chunks(parser.feed(text)))

    def _end(self, *, cancel: bool) -> None:
        self._done = True
        if self._parser is not None:
            # text that ends amid a call of a tool, say, is no error of the client's
            with suppress(ValueError, RuntimeError):
                self._put(response_events_to_chunks(self._parser.finalize()[1]))
        self._put([None])
        self._engine.release(self._id, cancel=cancel)

    def _put(self, items: list[Any]) -> None:
        for item in items:
            self.queue.put_nowait(item)


class _State(GenerationState):  # type: ignore[misc]
    """Gives transformers' handlers the engine, whatever they ask."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(continuous_batching=True)
        self._cb_manager = engine

    def use_continuous_batching(self, *_: Any) -> bool:
        """Say yes: transformers' asks for its own attention."""
        return True

    def get_manager(self, *_: Any, **__: Any) -> Engine:
        """Return the engine."""
        engine: Engine = self._cb_manager
        return engine


class _Options:
    """How a handler turns the fields of a request into a generation config."""

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, **_: Any
    ) -> GenerationConfig:
        defaults = model_generation_config
        sampled = 1.0 if defaults.temperature is None else defaults.temperature
        config = GenerationConfig(eos_token_id=defaults.eos_token_id)
        config.temperature = body.get("temperature", sampled if defaults.do_sample else 0.0)
        config.top_p = body.get("top_p", (defaults.top_p if defaults.do_sample else None) or 1.0)
        config.max_new_tokens = body.get("max_completion_tokens", body.get("max_tokens"))
        config.stop_strings = body.get("stop")
        return config


class _Chat(_Options, ChatCompletionHandler):  # type: ignore[misc]
    """transformers' chat completions, with our options."""


class _Completion(_Options, CompletionHandler):  # type: ignore[misc]
    """transformers' completions, with our options."""


def _sampling(config: GenerationConfig) -> dict[str, Any]:
    temperature = float(config.temperature)
    if temperature < _COLDEST:
        return {"temperature": 1.0, "greedy": 1, "top_p": 1.0}
    return {"temperature": temperature, "greedy": 0, "top_p": float(config.top_p)}
