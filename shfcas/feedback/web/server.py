"""The server of the page: it runs in a thread, for one run directory, as long as somebody needs it."""

import fcntl
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.web.annotators import add_annotators
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing

LOCK = ".annotate.lock"
START_SECONDS = 30.0


@dataclass(frozen=True)
class Page:
    """A page that is being served.

    Attributes:
        address: where people find it, such as `http://127.0.0.1:8900/`.
        port: where it listens, which the address of a proxy does not tell.
        links: by name, what each person opens to sign in. The token stands behind a `#`, which browsers neither send
            nor tell other pages.
    """

    address: str
    port: int
    links: dict[str, str]


@contextmanager
def serve(folder: str | Path, settings: HumanConfig, queue: str | None = None) -> Iterator[Page]:
    """Serves the page of a run directory until the context ends.

    Args:
        folder: the run directory; its `feedback.sqlite` and `annotators.txt` are made if they are not there.
        settings: how people are asked, and where the page listens.
        queue: serve this queue instead of the newest.

    Raises:
        UserError: the run is served already (the message names the address), the port is taken, the address is one
            that other machines reach and `allow_public` is not set, or the guidelines are not there.
    """
    import uvicorn

    from shfcas.feedback.web.app import make_app
    from shfcas.feedback.web.desk import Desk

    folder = existing(folder)
    check(settings)
    tokens = add_annotators(folder)
    with _lock(folder) as lock, Store(folder / STORE) as store, _listen(settings) as listener:
        if queue is not None:
            store.seed(queue)  # an error now if there is none
        config = uvicorn.Config(
            make_app(folder, Desk(store, settings, queue), settings),
            log_config=None,
            access_log=False,
            proxy_headers=False,  # or anybody could say to be somewhere else
            server_header=False,
            http="h11",
            ws="none",
            lifespan="off",
            timeout_keep_alive=60,
            timeout_graceful_shutdown=3,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="annotate", daemon=True)
        thread.start()
        try:
            _wait(server, thread)
            address = _address(settings, listener)
            _write(lock, address)
            yield Page(address, listener.getsockname()[1], sign_in_links(address, tokens))
        finally:
            server.should_exit = True
            thread.join()
            _write(lock, "")


def sign_in_links(address: str, tokens: dict[str, str]) -> dict[str, str]:
    """The links by name."""
    return {name: f"{address}#token={token}" for name, token in tokens.items()}


def running(folder: str | Path) -> str | None:
    """The address at which a run directory is being served, if it is."""
    try:
        file = (Path(folder) / LOCK).open("r+")
    except OSError:
        return None
    with file:
        for _ in range(20):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                if address := file.read().strip():
                    return address
                time.sleep(0.05)  # it is just starting
            else:
                return None
    return None


def check(settings: HumanConfig) -> None:
    """Says what would keep the page from being served.

    Raises:
        UserError: see `serve`.
    """
    from shfcas.feedback.web.guidelines import rendered
    from shfcas.feedback.web.security import is_loopback

    own = is_loopback(settings.host)  # first of all: it says so where there is no such address
    if not own and not settings.allow_public:
        raise UserError(
            f"host: other machines reach {settings.host}, and what goes over the network is not encrypted; leave the "
            "page at 127.0.0.1 behind an SSH tunnel or a proxy with TLS, or set allow_public"
        )
    rendered(settings.guidelines)


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str]]:
    """The file that says where the run is served; held for as long as it is."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose a folder you may write to") from error
    with os.fdopen(descriptor, "r+") as file:
        for attempt in range(10):  # somebody who asks whether it is held holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 9:
                    raise UserError(
                        f"{folder} is being served already, at {file.read().strip() or 'an unknown address'}; "
                        "use that page, or end its process first"
                    ) from None
                time.sleep(0.05)
        _write(file, "")
        yield file


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _listen(settings: HumanConfig) -> socket.socket:
    family, kind, _, _, place = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    try:
        # The same port again right after a restart.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port: cannot listen at port {settings.port} of {settings.host} ({error.strerror}); "
            "choose another one, or 0 for any that is free"
        ) from error
    return listener


def _wait(server: Any, thread: threading.Thread) -> None:
    end = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > end:
            raise UserError("the page did not start; the log says why")
        time.sleep(0.01)


def _address(settings: HumanConfig, listener: socket.socket) -> str:
    """As people type it: a machine that listens everywhere goes by its name."""
    if settings.address:
        return settings.address.rstrip("/") + "/"
    host = settings.host
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{listener.getsockname()[1]}/"
    if number.is_unspecified:
        host = socket.gethostname()
    elif number.version == 6:
        host = f"[{host}]"
    return f"http://{host}:{listener.getsockname()[1]}/"
