"""An HTTP server for one model that speaks OpenAI's interface: its routes, its beginning and end.

The application is ours, not transformers': that one also loads whatever model a client names,
resets the server for everybody, and answers malformed requests with internal errors.
"""

import asyncio
import errno
import json
import logging
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import TemplateError
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cli.serving.utils import CBWorkerDeadError

from tesseral._errors import DataError, ParameterError
from tesseral.llm.serving_engine import Engine, Limits
from tesseral.llm.serving_requests import ChatRequest, CompletionRequest, read_request
from tesseral.runtime.cpu import cpu_target

PLAIN_TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
"""How a conversation becomes a prompt for a model without a template: its texts, by line."""

_BYTES_PER_TOKEN = 64
_LEAST_BYTES = 2**16
_DRAINED_BYTES = 2**26
"""Of a body that is too large, read and dropped so that the client gets to read the answer."""

_GRACE_S = 5
"""Time that running requests have when the server is told to end."""

_KINDS = {400: "invalid_request_error", 404: "not_found_error", 429: "rate_limit_error"}


def serve(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_prompt_tokens: int | None = None,
    max_new_tokens: int = 1024,
    max_requests: int = 256,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a model until SIGINT or SIGTERM.

    Offers ``/v1/chat/completions``, ``/v1/completions``, ``/v1/models`` and ``/health``.
    Requests are generated together by continuous batching. There is neither encryption nor
    authentication: an address other than loopback is for networks that are trusted.

    Parameters
    ----------
    model, tokenizer
        As :func:`~tesseral.llm.load` returns them. A tokenizer without a chat template gets
        :data:`PLAIN_TEMPLATE`.
    name : str
        What clients call the model.
    host, port
        Where to listen; port 0 takes one that is free.
    max_prompt_tokens, max_new_tokens : int
        Tokens of a prompt, and to generate, at most; both together at most the model's
        maximum.
    max_requests : int
        Requests that run or wait at a time; others are refused with status 429.
    ready : callable
        Called with the address once the server listens.

    Raises
    ------
    ParameterError
        If the port is in use or the address is none of this machine's, or a limit is out of
        range.
    BackendError
        If the instruction set asked for cannot run here.
    """
    cpu_target()  # or the first request would find out, and end all
    limits = _limits(model, max_prompt_tokens, max_new_tokens, max_requests)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    logging.getLogger("transformers.cli.serving").setLevel(logging.ERROR)  # one line a request
    with _listening(host, port) as listener:
        engine = Engine(name, model, tokenizer, limits)
        config = uvicorn.Config(
            build_app(engine),
            lifespan="off",
            log_level="warning",
            timeout_graceful_shutdown=_GRACE_S,
        )
        server = uvicorn.Server(config)
        with engine.running(), _quiet_signals():
            ready(f"http://{_written(host)}:{listener.getsockname()[1]}/v1")
            server.run(sockets=[listener])


def build_app(engine: Engine) -> FastAPI:
    """Return the application that serves an engine, which is to be running."""
    app = FastAPI(title="tesseral", docs_url=None, redoc_url=None, openapi_url=None)
    largest = _LEAST_BYTES + _BYTES_PER_TOKEN * engine.limits.prompt_tokens

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        fields = read_request(ChatRequest, await _body(request, largest))
        return await _answer(engine, engine.chat, fields, request)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        fields = read_request(CompletionRequest, await _body(request, largest))
        return await _answer(engine, engine.completion, fields, request)

    @app.get("/v1/models")
    async def models() -> Response:
        entry = {"id": engine.name, "object": "model", "created": 0, "owned_by": "tesseral"}
        return JSONResponse({"object": "list", "data": [entry]})

    @app.get("/health")
    async def health() -> Response:
        if not engine.is_alive():
            return JSONResponse({"status": "failed"}, 503)
        return JSONResponse({"status": "ok", "model": engine.name, "requests": engine.n_active})

    _report_errors(app)
    return app


def _report_errors(app: FastAPI) -> None:
    """Let every refusal be a status and a message as OpenAI's clients read them."""

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    @app.exception_handler(DataError)
    async def wrong(_: Request, error: DataError) -> Response:
        return _error(400, str(error))

    @app.exception_handler(TemplateError)
    async def unfit(_: Request, error: TemplateError) -> Response:
        return _error(400, f"the model's chat template refuses the messages: {error}")

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        del error
        return _error(400, "the client went before its request was read")

    @app.exception_handler(CBWorkerDeadError)
    async def dead(_: Request, error: CBWorkerDeadError) -> Response:
        return _error(503, str(error))


def _error(status: int, message: str) -> Response:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": body}, status)


async def _body(request: Request, largest: int) -> Any:
    """Return the JSON value that a request carries."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= largest:
            parts.append(part)
        elif size > _DRAINED_BYTES:
            break
    if size > largest:
        raise HTTPException(413, f"the request is larger than {largest} bytes.")
    try:
        return json.loads(b"".join(parts), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the request is not JSON: {error}") from None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


async def _answer(
    engine: Engine, handler: Any, fields: dict[str, Any], request: Request
) -> Response:
    """Return what a handler of transformers answers, unless the client goes before."""
    if fields["model"] != engine.name:
        raise HTTPException(404, f"there is no such model here; the one served is {engine.name!r}.")
    task = asyncio.create_task(handler.handle_request(fields, f"tesseral-{uuid.uuid4().hex}"))
    while not task.done():
        await asyncio.wait({task}, timeout=0.5)
        if not task.done() and await request.is_disconnected():
            task.cancel()
            raise ClientDisconnect
    response: Response = task.result()
    if isinstance(response, StreamingResponse):
        response.body_iterator = _finished(response.body_iterator)
    return response


async def _finished(events: Any) -> AsyncIterator[str]:
    """Give events and, last, the one that tells OpenAI's clients that there are no more."""
    async with aclosing(events):
        async for event in events:
            yield event
    yield "data: [DONE]\n\n"


def _limits(model: PreTrainedModel, prompt: int | None, new: int, requests: int) -> Limits:
    context = int(model.config.get_text_config(decoder=True).max_position_embeddings)
    prompt = context - 1 if prompt is None else prompt
    if not (1 <= prompt < context and new >= 1 and requests >= 1):
        raise ParameterError(
            f"serve: max_prompt_tokens must be 1 to {context - 1}, one less than the model can "
            f"take, and max_new_tokens and max_requests at least 1; got {prompt}, {new} and "
            f"{requests}."
        )
    return Limits(
        prompt_tokens=prompt, new_tokens=min(new, context - 1), context=context, requests=requests
    )


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens; bound before anything slow is done."""
    if not 0 <= port < 2**16:
        raise ParameterError(f"serve: port must be 0 to 65535, got {port}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} of {host} is in use; choose another with --port"
        else:
            reason = f"cannot listen on port {port} of {host}: {error.strerror or error}"
        raise ParameterError(f"serve: {reason}.") from None
    with listener:
        yield listener


def _written(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Let the signals that end the server end nothing else, when uvicorn raises them again."""
    known = [signal.SIGINT, signal.SIGTERM]
    before = [signal.signal(number, lambda *_: None) for number in known]
    try:
        yield
    finally:
        for number, handler in zip(known, before, strict=True):
            signal.signal(number, handler)
