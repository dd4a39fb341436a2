"""The command serves until it is told to end, and says in one line why it cannot."""

import os
import re
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection

COMMAND = [sys.executable, "-c", "from tesseral.cli.main import main; main()", "serve"]


def test_it_answers_until_a_signal_and_ends_well(original):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [*COMMAND, str(original), "--port", "0", "--name", "tiny"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        said = server.stderr.readline()
        found = re.fullmatch(r"serving tiny at http://127\.0\.0\.1:(\d+)/v1\n", said)
        assert found, said + server.stderr.read()
        connection = HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request(
            "POST", "/v1/completions", '{"model": "tiny", "prompt": "It was", "max_tokens": 2}'
        )
        response = connection.getresponse()
        assert (response.status, b'"completion_tokens":2' in response.read()) == (200, True)
        connection.close()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
        assert server.stderr.read() == "stopped; requests that were not done were dropped\n"
    finally:
        server.kill()
        server.stderr.close()


def test_a_port_in_use_is_one_line(refused, original):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("serve", original, "--port", port)
    assert f"port {port} of 127.0.0.1 is in use" in said


def test_a_missing_model_is_refused(refused, tmp_path):
    assert "there is no such model directory" in refused("serve", tmp_path / "no")


def test_an_instruction_set_that_cannot_run_is_refused_at_once(refused, original, monkeypatch):
    monkeypatch.setenv("TESSERAL_CPU_TARGET", "sse9")
    assert "TESSERAL_CPU_TARGET='sse9' is unknown" in refused("serve", original)


def test_limits_are_checked(refused, original):
    assert "max_prompt_tokens must be 1 to 127" in refused(
        "serve", original, "--max-prompt-tokens", 128
    )
