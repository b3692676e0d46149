"""The page's server: a thread that serves one run directory until its context ends."""

import fcntl
import gc
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shfcas.feedback.annotation.backup import BACKUP, backed_up
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.web.annotators import add_annotators
from shfcas.feedback.web.log_limit import limit_logs
from shfcas.utils.errors import UserError
from shfcas.utils.files import existing
from shfcas.utils.listening import listen, reached_from_here_alone, wait_until_started

LOCK = ".annotate.lock"
BACKLOG = 128  # connections that wait to be accepted


@dataclass(frozen=True)
class Page:
    """Served page.

    Attributes:
        address: the page's address for annotators, such as `http://127.0.0.1:8900/`.
        port: the port that the server listens on, which the address of a proxy does not tell.
        links: sign-in link of each annotator, by name. The token comes after a `#`; browsers neither send that part
            nor pass it to other pages.
    """

    address: str
    port: int
    links: dict[str, str]


@contextmanager
def serve(
    folder: str | Path, settings: HumanConfig, queue: str | None = None, limits: dict[str, Any] | None = None
) -> Iterator[Page]:
    """Serves the page of a run directory until the context ends.

    Args:
        folder: the run directory; missing `feedback.sqlite` and `annotators.txt` are created. A backup of the answers
            is kept in `feedback.backup.sqlite`.
        settings: overlap, repeats, and the address to listen at.
        queue: serve this queue instead of the newest.
        limits: of connections, if not the usual ones; see `Connections`.

    Raises:
        UserError: the run is served already (the message names the address); the port is taken; other machines
            reach the address and `allow_public` is not set; or the guidelines are missing.
    """
    import uvicorn

    from shfcas.feedback.annotation.known import add_known_answers
    from shfcas.feedback.web.app import make_app
    from shfcas.feedback.web.connections import Connections, PageServer
    from shfcas.feedback.web.desk import Desk

    folder = existing(folder)
    check_settings(settings)
    tokens = add_annotators(folder)
    with ExitStack() as stack:
        lock = stack.enter_context(_lock(folder))
        store = stack.enter_context(Store(folder / STORE))
        listener = stack.enter_context(listen(settings.host, settings.port))
        if queue is not None:
            store.seed(queue)  # fail early if there is no such queue
        if settings.known_answers:
            add_known_answers(store, settings.known_answers)
        limit_logs()
        connections = Connections(**limits or {})
        config = uvicorn.Config(
            make_app(folder, Desk(store, settings, queue), settings),
            log_config=None,
            access_log=False,
            proxy_headers=False,  # otherwise clients could fake their address
            server_header=False,
            http=connections.protocol,  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            backlog=BACKLOG,
            timeout_graceful_shutdown=3,
        )
        server = PageServer(config, connections)
        stack.enter_context(backed_up(folder / STORE, folder / BACKUP))
        # A collection that looks at everything that was imported takes 60 ms, in which nobody is answered.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        thread = threading.Thread(target=server.run, args=([listener],), name="annotate", daemon=True)
        thread.start()
        try:
            wait_until_started(server, thread, "the page")
            address = _address(settings, listener)
            _write(lock, address)
            yield Page(address, listener.getsockname()[1], sign_in_links(address, tokens))
        finally:
            server.should_exit = True
            thread.join()
            _write(lock, "")


def sign_in_links(address: str, tokens: dict[str, str]) -> dict[str, str]:
    """Returns the sign-in links by name."""
    return {name: f"{address}#token={token}" for name, token in tokens.items()}


def running(folder: str | Path) -> str | None:
    """Returns the address at which a run directory is served, or None."""
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
                time.sleep(0.05)  # the server is just starting
            else:
                return None
    return None


def check_settings(settings: HumanConfig) -> None:
    """Fails early if the page cannot be served with these settings.

    Raises:
        UserError: see `serve`.
    """
    from shfcas.feedback.web.guidelines import render_guidelines

    own = reached_from_here_alone(settings.host)  # first, because it raises if there is no such address
    if not own and not settings.allow_public:
        raise UserError(
            f"host: other machines reach {settings.host}, and the traffic is not encrypted; leave the page at "
            "127.0.0.1 behind an SSH tunnel or a proxy with TLS, or set allow_public"
        )
    render_guidelines(settings.guidelines)


@contextmanager
def _lock(folder: Path) -> Iterator[IO[str]]:
    """Locks the file with the page's address until the context ends."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose a folder you may write to") from error
    with os.fdopen(descriptor, "r+") as file:
        for attempt in range(10):  # `running` holds the lock for a moment while it checks
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


def _address(settings: HumanConfig, listener: socket.socket) -> str:
    """Returns the address as people type it: a server that listens everywhere uses the machine's name."""
    path = f"{settings.root}/"
    if settings.address:
        return settings.address.rstrip("/") + path
    host = settings.host
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{listener.getsockname()[1]}{path}"
    if number.is_unspecified:
        host = socket.gethostname()
    elif number.version == 6:
        host = f"[{host}]"
    return f"http://{host}:{listener.getsockname()[1]}{path}"
