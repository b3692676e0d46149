"""A server that is a function of a socket, for replies that no HTTP library would send."""

import gzip
import json
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

Talk = Callable[[socket.socket, bytes], None]


def response(body: bytes | dict[str, Any] = b"", status: str = "200 OK", **headers: str) -> bytes:
    """The bytes of a reply; a dictionary is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Length": str(len(data)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    return "".join([f"HTTP/1.1 {status}\r\n", *(f"{k}: {v}\r\n" for k, v in fields.items()), "\r\n"]).encode() + data


def compressed(body: bytes) -> bytes:
    """The bytes of a reply that is compressed."""
    return response(gzip.compress(body), Content_Encoding="gzip")


def send(reply: bytes) -> Talk:
    """Sends a reply, announces the end of the connection, and closes it."""
    announced = reply.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    return lambda connection, request: connection.sendall(announced)


def say(*replies: bytes) -> Talk:
    """Sends one reply to each request on a connection, and the last one to all further requests."""

    def talk(connection: socket.socket, request: bytes) -> None:
        for reply in replies:
            connection.sendall(reply)
            request = read_request(connection)
        while request:
            connection.sendall(replies[-1])
            request = read_request(connection)

    return talk


def read_request(connection: socket.socket) -> bytes:
    """One request with its body; empty if the client has closed the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (piece := connection.recv(65536)):
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields.get(b"content-length", 0)):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class RawServer:
    """Reads the first request of each connection, then hands the connection to `talk`, which may break off anywhere.

    Args:
        talk: gets the connection and the request, in a thread of its own; its `ConnectionError`s are ignored.
        host: an address of this machine.

    Attributes:
        requests: first requests of all connections.
    """

    def __init__(self, talk: Talk, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.talk, self.requests = talk, list[bytes]()
        self.listener = socket.create_server((host, 0), family=family)
        name = f"[{host}]" if ":" in host else host
        self.host = f"{name}:{self.listener.getsockname()[1]}"
        self.url = f"http://{self.host}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = read_request(connection)
                self.requests.append(request)
                if request:
                    self.talk(connection, request)
            except ConnectionError:
                pass
