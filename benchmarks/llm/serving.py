"""Whether ``tesseral serve`` holds under load and under nonsense, as its acceptance asks.

A chat is streamed, then many clients ask for a while and must get all they asked for, and
meanwhile and afterwards requests that are none are sent. Run it with
``python benchmarks/llm/serving.py MODEL [--clients 16] [--seconds 120] [--malformed 200]``;
it prints JSON and ends with status 1 if anything was lost, or not refused with 4xx.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.client import HTTPConnection
from statistics import median

from openai import AsyncOpenAI, OpenAI

from tesseral.datasets import load_books_excerpt

NAME = "lm"
COMMAND = [sys.executable, "-c", "from tesseral.cli.main import main; main()", "serve"]


@contextmanager
def served(model: str):
    """Give the port of a server process, and check that it ends well."""
    command = [*COMMAND, model, "--port", "0", "--name", NAME]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = server.stderr.readline()
        found = re.search(r":(\d+)/v1$", said.strip())
        if found is None:
            raise SystemExit(said + server.stderr.read())
        yield int(found[1])
        server.send_signal(signal.SIGTERM)
        if server.wait(timeout=60) != 0:
            raise SystemExit(f"the server ended with status {server.returncode}")
    finally:
        server.kill()


def chat(port: int) -> dict[str, object]:
    """Stream a chat with the openai client."""
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        started, first, text, chunk = time.monotonic(), None, "", None
        messages = [{"role": "user", "content": "The old man opened the door and"}]
        for chunk in client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=64, temperature=0, stream=True
        ):
            if first is None and chunk.choices[0].delta.content:
                first = time.monotonic() - started
            text += chunk.choices[0].delta.content or ""
        return {
            "text": text,
            "first_token_s": first,
            "tokens_per_s": chunk.usage.completion_tokens / (time.monotonic() - started),
            "finish_reason": chunk.choices[0].finish_reason,
        }


async def ask(client: AsyncOpenAI, rng: random.Random, text: str) -> int:
    """Ask once and return the tokens that came, if all came."""
    start, wanted = rng.randrange(len(text) - 2000), rng.randrange(8, 64)
    stream = rng.random() < 0.5
    answer = await client.completions.create(
        model=NAME,
        prompt=text[start : start + rng.randrange(20, 1500)],
        max_tokens=wanted,
        temperature=rng.choice([0, 0.8]),
        stream=stream,
    )
    parts = [part async for part in answer] if stream else [answer]
    last = parts[-1]
    if last.choices[0].finish_reason not in ("length", "stop"):
        raise RuntimeError(f"ended with {last.choices[0].finish_reason}")
    came = last.usage.completion_tokens
    if came != wanted and last.choices[0].finish_reason == "length":
        raise RuntimeError(f"{came} of {wanted} tokens")
    return came


async def load(port: int, clients: int, seconds: float) -> dict[str, object]:
    """Let clients ask one request after the other for a while."""
    text, until = load_books_excerpt("test"), time.monotonic() + seconds
    latencies, tokens, lost = [], 0, []

    async def one(number: int) -> None:
        nonlocal tokens
        rng = random.Random(number)
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                tokens += await ask(client, rng, text)
                latencies.append(time.monotonic() - started)
            except Exception as error:  # whatever it is, a request was lost
                lost.append(repr(error)[:200])

    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=900
    ) as client:
        await asyncio.gather(*(one(number) for number in range(clients)))
    return {
        "clients": clients,
        "requests": len(latencies) + len(lost),
        "whole": len(latencies),
        "lost": lost,
        "tokens_per_s": tokens / seconds,
        "latency_median_s": median(latencies) if latencies else None,
    }


def body(**fields: object) -> bytes:
    """Return a request that is one but for these fields."""
    return json.dumps({"model": NAME, "prompt": "a", **fields}).encode()


MALFORMED: dict[str, Callable[[random.Random], bytes]] = {
    "bytes": lambda rng: rng.randbytes(rng.randrange(200)),
    "deep JSON": lambda _: b"[" * 20_000,
    "cut JSON": lambda rng: body(prompt="a" * 50)[: rng.randrange(40)],
    "huge prompt": lambda rng: body(prompt="a" * rng.randrange(10**6, 4 * 10**6)),
    "huge field": lambda rng: body(**{"x" * rng.randrange(9000, 90_000): 1}),
    "long prompt": lambda _: body(prompt="word " * 4000),
    "wrong type": lambda rng: body(prompt=rng.choice([3, None, ["a"], {"a": 1}, ""])),
    "wrong number": lambda rng: body(
        **{
            rng.choice(["max_tokens", "temperature", "top_p", "n"]): rng.choice(
                [-1, 1e9, "a", [], {"a": 1}, "1e400"]
            )
        }
    ),
    "infinity": lambda _: b'{"model": "lm", "prompt": "a", "temperature": 1e999}',
    "half a pair": lambda _: b'{"model": "lm", "prompt": "\\ud800"}',
    "unknown model": lambda rng: body(model=f"m{rng.random()}"),
}
PATHS = ("/v1/completions", "/v1/chat/completions")


def refused(port: int, rng: random.Random, kind: str) -> int:
    """Send nonsense and return the status."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", rng.choice(PATHS), MALFORMED[kind](rng))
        response = connection.getresponse()
        json.loads(response.read())["error"]["message"]
        return response.status
    finally:
        connection.close()


def disconnect(port: int, number: int) -> None:
    """Go while a request is written, answered or read."""
    data = body(max_tokens=200, stream=number % 3 == 2)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[: 9 if number % 3 == 0 else None])
        if number % 3 == 2:
            connection.recv(100)


def nonsense(port: int, count: int) -> dict[str, object]:
    """Send malformed requests of every kind, disconnects among them."""
    rng, statuses, wrong = random.Random(0), Counter(), []
    kinds = [*MALFORMED, "disconnect"]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        if kind == "disconnect":
            disconnect(port, number // len(kinds))
            statuses["disconnected"] += 1
            continue
        status = refused(port, rng, kind)
        statuses[str(status)] += 1
        if not 400 <= status < 500:
            wrong.append(f"{kind}: {status}")
    return {"sent": count, "statuses": dict(statuses), "wrong": wrong}


def health(port: int) -> dict[str, object]:
    """Return what the server says of itself once requests of clients that left have ended."""
    found: dict[str, object] = {}
    until = time.monotonic() + 60
    while time.monotonic() < until and found.get("requests") != 0:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/health")
        found = json.loads(connection.getresponse().read())
        connection.close()
        time.sleep(0.2)
    return found


def main() -> None:
    """Measure, print, and say by the status whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--malformed", type=int, default=200)
    given = parser.parse_args()

    async def both(port: int) -> tuple[dict[str, object], dict[str, object]]:
        attacked = asyncio.to_thread(nonsense, port, given.malformed)
        under_load = asyncio.create_task(load(port, given.clients, given.seconds))
        return await under_load, await attacked

    with served(given.model) as port:
        record: dict[str, object] = {"chat": chat(port)}
        record["load"], record["malformed"] = asyncio.run(both(port))
        record["health"] = health(port)
        record["chat_after"] = chat(port)
    sys.stdout.write(json.dumps(record, indent=2) + "\n")
    loaded, sent, state = record["load"], record["malformed"], record["health"]
    held = not loaded["lost"] and not sent["wrong"] and state.get("status") == "ok"
    raise SystemExit(not (held and record["chat"]["text"] and state.get("requests") == 0))


if __name__ == "__main__":
    main()
