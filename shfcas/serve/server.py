"""The server's life: listen, serve, and end after the requests that are being scored."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shfcas.serve.app import RewardApp
from shfcas.utils.errors import UserError
from shfcas.utils.http import SHORTEST_SECRET

TOKEN = "SHFCAS_REWARD_TOKEN"
START_SECONDS = 30.0
STOP_SECONDS = 60  # for requests that are being scored


def token_for(host: str) -> str:
    """Returns the token that the environment sets.

    Raises:
        UserError: other machines reach the host, and there is no token, or it is too short or has characters that no
            header can carry.
    """
    from shfcas.feedback.web.security import is_loopback

    token = os.environ.get(TOKEN, "").strip()
    if token and (len(token) < SHORTEST_SECRET or not token.isascii() or not token.isprintable()):
        raise UserError(f"{TOKEN}: expected at least {SHORTEST_SECRET} printable ASCII characters; set it again")
    if not token and not is_loopback(host):
        raise UserError(
            f"host: other machines reach {host}; set {TOKEN}, which requests then have to send, or leave the server at "
            "127.0.0.1"
        )
    return token


@contextmanager
def serve(app: RewardApp, listener: socket.socket) -> Iterator[str]:
    """Serves until the context ends, and then finishes the requests that are being scored.

    Args:
        app: the application.
        listener: a socket of `listen`.

    Yields:
        The address, such as `http://127.0.0.1:8901`.

    Raises:
        UserError: the server did not start.
    """
    import uvicorn

    config = uvicorn.Config(
        app.asgi,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        lifespan="off",
        timeout_keep_alive=60,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="serve", daemon=True)
    thread.start()
    try:
        _wait(server, thread)
        host, port = listener.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        app.stopping = True
        server.should_exit = True
        thread.join()
        app.close()


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that holds the address, so that a taken port is noticed before a model is loaded.

    Args:
        host: address of this machine.
        port: port, 0 for any free one.

    Raises:
        UserError: the address cannot be listened at.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise UserError(f"host: expected an address of this machine, got {host!r} ({error.strerror})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port: cannot listen at port {port} of {host} ({error.strerror}); choose another, or 0 for any free one"
        ) from error
    return listener


def _wait(server: object, thread: threading.Thread) -> None:
    end = time.monotonic() + START_SECONDS
    while not getattr(server, "started", False):
        if not thread.is_alive() or time.monotonic() > end:
            raise UserError("the server did not start; its log says why")
        time.sleep(0.01)
