"""The generator that draws at a server, against servers that answer oddly."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shfcas.sampling import server as server_module
from shfcas.sampling.config import SamplingConfig, ServerConfig
from shfcas.sampling.protocol import Request
from shfcas.sampling.server import ServerGenerator
from shfcas.utils.errors import UserError
from tests.support.raw_server import RawServer, read_request, response

KEY = "a-secret-key"
Reply = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)  # reading certificates takes a while


def completion(**fields: Any) -> bytes:
    choice = {"index": 0, "text": "x", "finish_reason": "stop", "token_ids": [5], **fields}
    return response({"choices": [choice]})


def completions_server(completions: bytes | Reply, version: bytes = response(b"", "404 Not Found")) -> RawServer:
    """A server that lists the model `m`."""

    def talk(connection: socket.socket, request: bytes) -> None:
        while request:
            replies = {b"/v1/models": response({"data": [{"id": "m"}]}), b"/version": version}
            reply = replies.get(request.split()[1], completions)
            connection.sendall(reply if isinstance(reply, bytes) else reply(request))
            if not reply:
                return
            request = read_request(connection)

    return RawServer(talk)


def generator(server: RawServer, **values: Any) -> ServerGenerator:
    settings = ServerConfig(server.url, "m", **{"max_retries": 0, "retry_wait": 0.0, **values})
    return ServerGenerator(SamplingConfig(generator="openai", server=settings), "policy")


def requests(number: int) -> list[Request]:
    return [Request([1, 2], "x", False, seed) for seed in range(number)]


@pytest.mark.parametrize(
    "version",
    [
        response(b"<html>welcome"),
        response({"name": "other"}),
        response({"version": None}),
        response({"version": ["1"]}),
        response({"version": " "}),
        response(b"[]"),
        response(b'"1.0"'),
        response(b""),
        response(b"", "302 Found", Location="https://elsewhere.example/login"),
        *(response(b"no", f"{status} X") for status in (400, 401, 403, 404, 405, 429, 500, 502)),
        response(b"", "429 X", Retry_After="86400"),
        b"",
    ],
)
def test_a_server_without_a_version_is_served_all_the_same(version: bytes) -> None:
    with completions_server(completion(), version) as server:
        drawing = generator(server, max_retries=6)
        assert drawing.identity() == {"name": "openai", "server": None}
        assert [answer.tokens for (answer,) in drawing(requests(2))] == [[5], [5]]


def test_a_version_is_read_without_the_key() -> None:
    with completions_server(completion(), response({"version": f"0.9.1\n{KEY}"})) as server:
        assert generator(server).identity() == {"name": "openai", "server": "vllm 0.9.1 ***"}


@pytest.mark.parametrize(
    "fields",
    [
        {"token_ids": "x"},
        {"token_ids": [None]},
        {"token_ids": {}, "logprobs": {"token_logprobs": [1.0]}},
        {"token_ids": [float("inf")]},
        {"logprobs": [1]},
        {"logprobs": {"token_logprobs": ["x"]}},
        {"prompt_token_ids": 7},
        {"prompt_token_ids": ["x"]},
        {"index": None, "finish_reason": None},
    ],
)
def test_a_broken_completion_is_one_line(fields: dict[str, Any]) -> None:
    with completions_server(completion(**fields)) as server:
        with pytest.raises(UserError, match=r"^127\.0\.0\.1:\d+: the (reply|server) .*, after 1 attempt; ") as caught:
            list(generator(server)(requests(1)))
        assert "\n" not in str(caught.value)
        if "prompt_token_ids" in fields:
            with pytest.raises(UserError, match="the reply is not a completion"):
                generator(server).check_tokenizer(lambda text, **_: {"input_ids": [1]})


def test_text_and_errors_hide_the_key() -> None:
    with completions_server(completion(text=f"it is {KEY}", token_ids=None)) as server:
        assert next(generator(server)(requests(1)))[0].text == "it is ***"
    odd = completion(finish_reason=KEY)
    with completions_server(odd) as server, pytest.raises(UserError, match=r"for the reason '\*\*\*'"):
        list(generator(server)(requests(1)))


def test_a_reply_that_is_too_large_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LARGEST_REPLY", 1000)
    large = completion(text="x" * 1000)
    with completions_server(large) as server, pytest.raises(UserError, match="a reply of more than 1,000 bytes"):
        list(generator(server, max_retries=9, retry_wait=60.0)(requests(1)))


def test_a_refused_request_ends_the_others_at_once() -> None:
    def reply(request: bytes) -> bytes:
        if b'"seed": 0' in request:
            time.sleep(0.3)
            return response({"error": {"message": "no"}}, "400 X")
        time.sleep(300)
        return completion()

    with completions_server(reply) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"refuses the request \(400: no\)"):
            list(generator(server)(requests(4)))
        assert time.monotonic() - began < 100


PROGRAM = """
import sys
from shfcas.sampling.config import SamplingConfig, ServerConfig
from shfcas.sampling.protocol import Request
from shfcas.sampling.server import ServerGenerator

settings = ServerConfig(sys.argv[1], "m", timeout=100.0)
generator = ServerGenerator(SamplingConfig(generator="openai", server=settings), "policy")
try:
    list(generator([Request([1], "x", False, seed) for seed in range(4)]))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.system
def test_ctrl_c_does_not_wait_for_answers() -> None:
    ended = threading.Semaphore(0)

    def talk(connection: socket.socket, request: bytes) -> None:
        if b"/models" in request:
            connection.sendall(response({"data": [{"id": "m"}]}))
            request = read_request(connection)
            server.requests.append(request)
        if not connection.recv(1):
            ended.release()

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with RawServer(talk) as server:
        command = [sys.executable, "-c", PROGRAM, server.url]
        with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
            while len(server.requests) < 5:
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert all(ended.acquire(timeout=90) for _ in range(4))  # so the server stops drawing too
            output, errors = process.communicate(timeout=90)
    assert (output, errors, process.returncode) == ("interrupted\n", "", 0)
