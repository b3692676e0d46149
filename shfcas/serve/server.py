"""The server's life: serve, and end after the requests that are being scored."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from shfcas.serve.app import RewardApp
from shfcas.utils.errors import UserError
from shfcas.utils.http import SHORTEST_SECRET
from shfcas.utils.listening import reached_from_here_alone, wait_until_started

TOKEN = "SHFCAS_REWARD_TOKEN"
STOP_SECONDS = 60  # for requests that are being scored


def token_for(host: str) -> str:
    """Returns the token that the environment sets.

    Raises:
        UserError: other machines reach the host, and there is no token, or it is too short or has characters that no
            header can carry.
    """
    token = os.environ.get(TOKEN, "").strip()
    if token and (len(token) < SHORTEST_SECRET or not token.isascii() or not token.isprintable()):
        raise UserError(f"{TOKEN}: expected at least {SHORTEST_SECRET} printable ASCII characters; set it again")
    if not token and not reached_from_here_alone(host):
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
        listener: a socket of `shfcas.utils.listening.listen`.

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
        wait_until_started(server, thread, "the server")
        host, port = listener.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        app.stopping = True
        server.should_exit = True
        thread.join()
        app.close()
