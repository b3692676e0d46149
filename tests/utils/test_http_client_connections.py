"""Connections of the HTTP client: how many, for how long, and how requests end early."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shfcas.utils import http_client
from shfcas.utils.http_client import Stopped
from tests.support.http_cases import GOOD, Serve, client, get
from tests.support.raw_server import Talk, read_request, response, say

pytestmark = pytest.mark.usefixtures("environment")


def test_ipv6(serve: Serve) -> None:
    server = serve(say(GOOD), "::1")
    assert get(server) == {"answer": 42}
    assert f"host: {server.host}".encode() in server.requests[0].lower()


def test_connections_are_kept_and_no_more_than_allowed(serve: Serve) -> None:
    most, now, guard = [0], [0], threading.Lock()

    def talk(connection: socket.socket, request: bytes) -> None:
        while request:
            with guard:
                now[0] += 1
                most[0] = max(most[0], now[0])
            time.sleep(0.02)
            with guard:
                now[0] -= 1
            connection.sendall(GOOD)
            request = read_request(connection)

    server = serve(talk)
    shared = client(server.url, concurrency=3)

    def ask() -> None:
        for _ in range(10):
            assert shared.request("GET", server.url) == {"answer": 42}

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 3 == len(server.requests)  # connections, of which each carried many requests


def test_a_kept_connection_that_the_server_has_closed_is_not_used(serve: Serve) -> None:
    server = serve(lambda connection, request: connection.sendall(GOOD))  # and closes it without a word
    mine = client(server.url)
    for _ in range(3):
        assert mine.request("GET", server.url) == {"answer": 42}
        time.sleep(0.05)
    assert mine.retries == 0 and len(server.requests) == 3


def test_a_set_stop_ends_waits_at_once(serve: Serve) -> None:
    stop = threading.Event()

    def busy(connection: socket.socket, request: bytes) -> None:
        connection.sendall(response(b"", "429 X", Retry_After="500"))
        threading.Timer(0.3, stop.set).start()  # while the client waits

    server = serve(busy)
    began = time.monotonic()
    with pytest.raises(Stopped):
        client(server.url, max_retries=9, timeout=600).request("GET", server.url, stop=stop)
    assert time.monotonic() - began < 100
    with pytest.raises(Stopped):
        client(server.url).request("GET", server.url, stop=stop)
    assert len(server.requests) == 1


def test_cancel_ends_requests_under_way_and_their_connections(serve: Serve) -> None:
    ended = threading.Event()

    def talk(connection: socket.socket, request: bytes) -> None:
        if not connection.recv(1):
            ended.set()

    server = serve(talk)
    mine, outcome = client(server.url), list[BaseException]()

    def ask() -> None:
        try:
            mine.request("GET", server.url)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.requests:
        time.sleep(0.01)
    mine.cancel()
    thread.join(10)
    assert isinstance(outcome[0], Stopped) and ended.wait(10)


def test_a_forgotten_client_closes_its_connections_and_its_thread(serve: Serve) -> None:
    closed = threading.Event()

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(GOOD)
        if not connection.recv(1):
            closed.set()

    server = serve(talk)
    before = {thread for thread in threading.enumerate() if thread.name == http_client.THREAD}
    mine = client(server.url)
    mine.request("GET", server.url)
    (thread,) = {t for t in threading.enumerate() if t.name == http_client.THREAD} - before
    del mine
    gc.collect()
    thread.join(10)
    assert closed.wait(10) and not thread.is_alive()


PROGRAM = """
import socket, sys, time
from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import Client

def look_up(host, port, **options):
    print("looking up", flush=True)
    time.sleep(100)

socket.getaddrinfo = look_up
client = Client(Endpoint(sys.argv[1], "base_url", "SOME_KEY"), timeout=100, max_retries=5, retry_wait=100,
                concurrency=4, max_reply_bytes=100)
print("ready", flush=True)
try:
    client.request("GET", sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.system
@pytest.mark.parametrize("talk", [lambda c, request: c.recv(1), say(response(b"", "500 X"))], ids=["reply", "retry"])
def test_ctrl_c_ends_a_request_and_the_program_at_once(talk: Talk, serve: Serve) -> None:
    server = serve(talk)
    command = [sys.executable, "-c", PROGRAM, server.url]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        while not server.requests:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=90)  # the request would take 100 seconds
    assert (output, errors, process.returncode) == ("ready\ninterrupted\n", "", 0)


@pytest.mark.system
def test_ctrl_c_does_not_wait_for_a_host_name() -> None:
    command = [sys.executable, "-c", PROGRAM, "http://some.invalid/v1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "looking up\n"]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=90)  # the look-up would take 100 seconds
    assert (output, process.returncode) == ("interrupted\n", 0)


def test_importing_is_light() -> None:
    code = "import sys, shfcas.utils.http, shfcas.utils.http_client; print('httpx2' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(printed.stdout.lower()) is False
