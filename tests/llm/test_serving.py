"""The server answers OpenAI's clients, many at once, and refuses everything else."""

import asyncio
import json
import random
import re
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path

import pytest
import uvicorn
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI, RateLimitError

from support.models import tiny_llama
from support.pages import pieces
from tesseral._errors import ParameterError
from tesseral.datasets import load_books_excerpt, load_embedded_lm
from tesseral.llm import generate, load, quantize, serving
from tesseral.llm.serving_engine import Engine, Limits
from tesseral.quantization import QuantizationConfig

NAME = "lm"
OPENING = "The old man opened the door and"
LIMITS = Limits(prompt_tokens=300, new_tokens=200, context=400, requests=64)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The embedded model in four bits, and its tokenizer."""
    config = QuantizationConfig(transform="hadamard", samples=2, sequence_length=64)
    out = tmp_path_factory.mktemp("models") / "w4a4"
    model, tokenizer = load(
        quantize(load_embedded_lm(), config, load_books_excerpt("calibration"), out)
    )
    tokenizer.chat_template = serving.PLAIN_TEMPLATE
    return model, tokenizer


@contextmanager
def running(app):
    """Run an application in a thread and give its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def engine(loaded):
    engine = Engine(NAME, *loaded, LIMITS)
    with engine.running():
        yield engine


@pytest.fixture(scope="module")
def port(engine):
    with running(serving.build_app(engine)) as port:
        yield port


@pytest.fixture
def client(port):
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


def send(port, method, path, body=b"", headers=()):
    """Send a request of any bytes and return status and JSON value."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, dict(headers))
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def test_a_chat_is_streamed(client, loaded):
    messages = [{"role": "system", "content": "It was late."}, {"role": "user", "content": OPENING}]
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=12, temperature=0, stream=True
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == generate(*loaded, f"It was late.\n{OPENING}\n", max_new_tokens=12)
    assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) > 4
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 12


@pytest.mark.parametrize("page", ["README.md", "docs/guides/serve.md"])
def test_the_client_that_a_page_shows_is_answered(port, loaded, capsys, page):
    text = (Path(__file__).parents[2] / page).read_text("utf-8")
    (code,) = [piece for piece in pieces(text, "text") if "OpenAI(" in piece]
    name = re.search(r'model="(.+?)"', code)[1]
    code = code.replace(":8000/", f":{port}/").replace(f'model="{name}"', f'model="{NAME}"')
    exec(compile(code.replace("max_tokens", "temperature=0, max_tokens"), page, "exec"), {})
    expected = generate(*loaded, "The old man", max_new_tokens=40)
    assert capsys.readouterr().out.strip() == expected.strip()


def test_a_chat_is_answered_at_once(client, loaded):
    messages = [{"role": "user", "content": [{"type": "text", "text": OPENING}]}]
    answer = client.chat.completions.create(
        model=NAME, messages=messages, max_completion_tokens=12, temperature=0
    )
    choice = answer.choices[0]
    assert choice.message.content == generate(*loaded, f"{OPENING}\n", max_new_tokens=12)
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")


@pytest.mark.parametrize("stream", [True, False])
def test_a_text_ends_before_a_stop_string(client, loaded, stream):
    whole = generate(*loaded, OPENING, max_new_tokens=30)
    stop = whole[len(whole) // 2 :][:5]
    answer = client.completions.create(
        model=NAME,
        prompt=OPENING,
        max_tokens=30,
        temperature=0,
        stop=["no such", stop],
        stream=stream,
    )
    parts = [part.choices[0] for part in (answer if stream else [answer])]
    assert "".join(part.text for part in parts) == whole[: whole.find(stop)]
    assert parts[-1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_what_began_like_a_stop_string_is_text_at_the_end(client, loaded, stream):
    whole = generate(*loaded, OPENING, max_new_tokens=10)
    request = {"model": NAME, "prompt": OPENING, "max_tokens": 10, "temperature": 0}
    answer = client.completions.create(**request, stop=whole[-3:] + "~", stream=stream)
    parts = [part.choices[0] for part in (answer if stream else [answer])]
    assert "".join(part.text for part in parts) == whole


def test_tokens_are_drawn_where_a_temperature_is_given(client):
    texts = {
        client.completions.create(model=NAME, prompt=OPENING, max_tokens=12, temperature=1.5)
        .choices[0]
        .text
        for _ in range(3)
    }
    assert len(texts) > 1


def test_many_clients_at_once_each_get_all_of_their_own():
    # in full precision: codes of activations may change with the order of a sum
    model, tokenizer = load(load_embedded_lm())
    text = load_books_excerpt("test")
    prompts = [text[start : start + 50 + 7 * start] for start in range(16)]
    expected = [
        generate(model, tokenizer, prompt, max_new_tokens=8 + number)
        for number, prompt in enumerate(prompts)
    ]

    async def ask(client, number):
        request = {"model": NAME, "prompt": prompts[number], "max_tokens": 8 + number}
        answers = []
        for stream in (True, False):
            answer = await client.completions.create(**request, temperature=0, stream=stream)
            parts = [part async for part in answer] if stream else [answer]
            assert parts[-1].usage.completion_tokens == 8 + number
            answers.append("".join(part.choices[0].text for part in parts))
        return answers

    async def ask_all(port):
        base = f"http://127.0.0.1:{port}/v1"
        async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(16)))

    engine = Engine(NAME, model, tokenizer, LIMITS)
    with engine.running(), running(serving.build_app(engine)) as port:
        assert asyncio.run(ask_all(port)) == [[text, text] for text in expected]


def test_the_model_is_listed_and_the_server_is_well(client, port):
    assert [model.id for model in client.models.list()] == [NAME]
    assert send(port, "GET", "/health") == (200, {"status": "ok", "model": NAME, "requests": 0})


MALFORMED = [
    lambda rng: rng.randbytes(rng.randrange(200)),
    lambda _: b"[" * 20_000,
    lambda rng: json.dumps({"model": NAME, "prompt": "a" * 50}).encode()[: rng.randrange(40)],
    lambda rng: json.dumps(
        {"model": NAME, "prompt": "a" * rng.randrange(100_000, 900_000)}
    ).encode(),
    lambda rng: json.dumps({"model": f"m{rng.random()}", "prompt": "a"}).encode(),
    lambda _: json.dumps({"model": NAME, "prompt": "word " * 400}).encode(),
    lambda rng: json.dumps({"model": NAME, "prompt": rng.choice(["", 3, None, ["a"]])}).encode(),
    lambda _: json.dumps({"model": NAME, "prompt": "a", "x" * 9000: 1}).encode(),
    *(
        lambda rng, field=field: json.dumps(
            {"model": NAME, "prompt": "a", field: rng.choice([-1, 1e9, "a", [], {"a": 1}, "1e400"])}
        ).encode()
        for field in ("max_tokens", "temperature", "top_p", "n", "logprobs", "presence_penalty")
    ),
    lambda _: b'{"model": "lm", "prompt": "a", "temperature": 1e999}',
    lambda _: b'{"model": "lm", "prompt": "\\ud800"}',
]


def test_malformed_requests_get_an_answer_of_their_own_and_harm_nobody(port, client, engine):
    rng = random.Random(0)
    paths = ["/v1/completions", "/v1/chat/completions"]
    for number in range(180):
        body = MALFORMED[number % len(MALFORMED)](rng)
        status, answer = send(port, "POST", rng.choice(paths), body)
        assert 400 <= status < 500, (status, body[:100])
        assert answer["error"]["message"]
    for method, path in [("GET", "/v1/completions"), ("POST", "/health"), ("PUT", "/no")] * 3:
        assert 400 <= send(port, method, path)[0] < 500
    for number in range(12):  # clients that go: while they write, while they wait, while they read
        body = json.dumps(
            {"model": NAME, "prompt": "a", "max_tokens": 200, "stream": number % 3 > 1}
        )
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"POST {paths[0]} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body[: 9 if number % 3 == 0 else None]).encode())
            if number % 3 == 2:
                assert connection.recv(100)
    until = time.monotonic() + 30
    while engine.n_active and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.n_active == len(engine._cb.output_router.result_handlers) == 0
    assert send(port, "GET", "/health")[0] == 200
    assert client.completions.create(model=NAME, prompt="a", max_tokens=3).usage.completion_tokens


def test_a_client_that_goes_stops_its_request(port, engine):
    body = json.dumps({"model": NAME, "prompt": OPENING, "max_tokens": 200})
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        active = engine._cb.batch_processor.scheduler.active_requests
        while not active:
            time.sleep(0.001)
        (request,) = active.values()
    while active:
        assert time.monotonic() < started + 30
        time.sleep(0.001)
    assert request.generated_len() < 200
    assert engine.n_active == 0


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"prompt": "word " * 301}, "at most 300 are taken"),
        ({"prompt": "a", "max_tokens": 201}, "201 tokens are asked for; at most 200"),
        ({"prompt": "word " * 290, "max_tokens": 150}, "do not fit into the 400"),
        ({"prompt": ""}, "the prompt is empty"),
    ],
    ids=["prompt", "new", "both", "empty"],
)
def test_what_is_too_long_is_refused(client, request_, said):
    with pytest.raises(BadRequestError, match=said):
        client.completions.create(model=NAME, **request_)


def test_another_model_is_not_found(client):
    with pytest.raises(NotFoundError, match="the one served is 'lm'"):
        client.completions.create(model="gpt", prompt="a")


def test_messages_that_a_template_refuses_are_the_clients_mistake(client, loaded, monkeypatch):
    monkeypatch.setattr(loaded[1], "chat_template", "{{ raise_exception('users only') }}")
    with pytest.raises(BadRequestError, match="chat template refuses the messages: users only"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "a"}])


def test_more_requests_than_are_allowed_are_told_to_wait(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "limits", replace(LIMITS, requests=0))
    with pytest.raises(RateLimitError, match="0 requests are running or waiting; try later"):
        client.completions.create(model=NAME, prompt="a")


def test_a_server_whose_generation_has_failed_says_so(port, engine, monkeypatch):
    status = engine._cb.background_thread_status
    monkeypatch.setattr(status, "fatal_error", RuntimeError("out of memory"))
    assert send(port, "GET", "/health") == (503, {"status": "failed"})
    body = json.dumps({"model": NAME, "prompt": "a"})
    code, answer = send(port, "POST", "/v1/completions", body)
    assert (code, answer["error"]["type"]) == (503, "server_error")
    assert "out of memory" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_prompt_tokens": 128}, "max_prompt_tokens must be 1 to 127"),
        ({"max_new_tokens": 0}, "got 127, 0 and 256"),
        ({"max_requests": 0}, "got 127, 1024 and 0"),
        ({"port": 70000}, "port must be 0 to 65535, got 70000"),
        ({"host": "203.0.113.1"}, "cannot listen on port 8000 of 203.0.113.1"),
        ({"host": "no.such.name.invalid"}, "cannot listen on port 8000 of no.such"),
    ],
)
def test_a_server_that_cannot_be_is_refused(loaded, options, said):
    with pytest.raises(ParameterError, match=said):
        serving.serve(tiny_llama("tesseral"), loaded[1], name=NAME, **options)


def test_a_port_in_use_is_named(loaded):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ParameterError, match=f"port {port} of 127.0.0.1 is in use; choose"):
            serving.serve(tiny_llama("tesseral"), loaded[1], name=NAME, port=port)
