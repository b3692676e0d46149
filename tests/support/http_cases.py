"""Servers that misbehave, and a client in front of them, for the tests of the HTTP client."""

import itertools
import socket
import time
from collections.abc import Callable
from typing import Any

from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import Client
from tests.support.raw_server import RawServer, Talk, response, say

KEY = "sk-quince/medlar+secret"  # letters that no port and no address in memory contains


GOOD = response({"answer": 42})


Serve = Callable[..., RawServer]


def client(url: str, **values: Any) -> Client:
    defaults = {"timeout": 20.0, "max_retries": 0, "retry_wait": 0.0, "concurrency": 4, "max_reply_bytes": 2**20}
    return Client(Endpoint(url, "base_url", "SOME_KEY"), **{**defaults, **values})


def get(server: RawServer | str, **values: Any) -> Any:
    url = server if isinstance(server, str) else server.url
    return client(url, **values).request("GET", f"{url}/models")


def first(failure: Talk) -> Talk:
    """Fails on the first connection, answers on all others."""
    number = itertools.count()
    return lambda connection, request: (say(GOOD) if next(number) else failure)(connection, request)


def drip(start: bytes) -> Talk:
    """Sends a start, then one byte every 20 ms for 100 seconds."""

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(start)
        for _ in range(5000):
            time.sleep(0.02)
            connection.sendall(b"x")

    return talk


def close(connection: socket.socket, request: bytes) -> None:
    """Reads a request and hangs up."""


def reset(connection: socket.socket, request: bytes) -> None:
    connection.sendall(GOOD[:20])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def half_closed(connection: socket.socket, request: bytes) -> None:
    """Ends its own side in the middle of a reply and keeps listening."""
    connection.sendall(GOOD[:-5])
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
