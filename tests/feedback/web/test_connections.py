"""Connections that are slow, many or malformed, over real sockets: they shut nobody out and fill no log."""

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.connections import SECONDS, Connection, Connections
from shfcas.feedback.web.log_limit import LogLimit
from shfcas.feedback.web.server import Page, serve
from tests.support.page_client import Client, make_items, make_run, signed_in

SETTINGS = HumanConfig(port=0, repeat_share=0.0)
HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
PATIENCE = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, make_items(20))
    return folder


@contextmanager
def served(folder: Path, strangers: int = 256, **seconds: float) -> Iterator[Page]:
    with serve(folder, SETTINGS, limits={"strangers": strangers, "seconds": SECONDS | seconds}) as page:
        yield page


def connect(page: Page, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", page.port), timeout=PATIENCE)
    connection.sendall(data)
    return connection


def is_ended(connection: socket.socket) -> bool:
    """Waits until the server has ended a connection without a reply."""
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def post(page: Page, length: int) -> bytes:
    place = f"127.0.0.1:{page.port}"
    return (
        f"POST /api/sign-in HTTP/1.1\r\nHost: {place}\r\nOrigin: http://{place}\r\nX-CSRF-Token: x\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_each_step_of_a_request_has_a_deadline(folder: Path) -> None:
    with served(folder, head=0.2, body=0.2, idle=0.2) as page:
        for data in (b"", b"G", HALF, post(page, 100), post(page, 100) + b"{"):
            with connect(page, data) as connection:
                assert is_ended(connection)
        with connect(page, HALF.removesuffix(b"X-Slow: ") + b"\r\n") as connection:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            while connection.recv(65536):
                pass  # the reply, and then the end of the idle connection
        assert Client(page.address).get("/").status == 200


def test_a_dripping_request_is_ended_as_well(folder: Path) -> None:
    with served(folder, head=0.3) as page, connect(page, HALF) as connection:
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.02):
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        assert is_ended(connection)
        stop.set()
        thread.join()


@pytest.mark.system
def test_a_client_that_reads_nothing_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, drop = threading.Event(), Connection.drop

    def noted(self: Connection) -> None:
        if self.transport.get_write_buffer_size():
            ended.set()
        drop(self)

    monkeypatch.setattr(Connection, "drop", noted)
    make_run(tmp_path, make_items(1, first_text="a" * 20_000_000))
    with served(tmp_path, reply=8.0, idle=8.0) as page:
        client = signed_in(page)
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        request = f"GET /api/next HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n"
        with connect(page, request.encode()) as greedy:
            assert ended.wait(PATIENCE)
            received = 0
            try:
                while data := greedy.recv(1 << 20):
                    received += len(data)
            except ConnectionResetError:
                pass
            assert received < 20_000_000
        assert signed_in(page).get("/api/me").status == 200


def test_half_open_requests_shut_nobody_out(folder: Path) -> None:
    with served(folder, strangers=8) as page, ExitStack() as stack:
        ada = signed_in(page)
        task = ada.next()
        attackers = [stack.enter_context(connect(page, HALF)) for _ in range(60)]
        assert ada.judge(task).status == 200  # on the connection that has signed in
        assert all(is_ended(each) for each in attackers[:-8])
        ben = signed_in(page, "ben")
        assert ben.next() is not None
        more = [stack.enter_context(connect(page, HALF)) for _ in range(60)]
        assert all(is_ended(each) for each in more[:-8])
        assert ada.get("/api/me").status == ben.get("/api/me").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        b"Content-Length: 2\r\ncontent-length: 3\r\n\r\n{}",
        b"Content-Length: 2, 2\r\n\r\n{}",
        b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"X-Long: " + b"a" * 20_000 + b"\r\n\r\n",
    ],
)
@pytest.mark.parametrize("pipelined", [False, True])
def test_ambiguous_and_long_heads_are_refused(folder: Path, headers: bytes, pipelined: bool) -> None:
    with served(folder) as page:
        first = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" if pipelined else b""
        with connect(page, first + b"POST /api/sign-in HTTP/1.1\r\nHost: localhost\r\n" + headers) as connection:
            received = b""
            while data := connection.recv(65536):
                received += data
        assert received.count(b"HTTP/1.1 200") == pipelined
        assert received.count(b"HTTP/1.1 400") == 1


def test_a_large_body_is_refused_by_its_length_alone(folder: Path) -> None:
    with served(folder) as page, connect(page, post(page, 1 << 40)) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_errors_that_strangers_cause_fill_no_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served(folder) as page:
        for _ in range(120):
            with connect(page, b"GARBAGE\r\n\r\n") as connection:
                assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    assert len([record for record in caplog.records if "Invalid HTTP request" in record.getMessage()]) <= 20


def test_what_a_limit_leaves_out_is_counted() -> None:
    now = 0.0
    limit = LogLimit(most=3, seconds=60, clock=lambda: now)

    def log(message: str, level: int = logging.ERROR) -> str | None:
        record = logging.LogRecord("name", level, "", 0, "failed: %s", (message,), None)
        return record.getMessage() if limit.filter(record) else None

    assert [log(str(k)) for k in range(5)] == ["failed: 0", "failed: 1", "failed: 2", None, None]
    assert log("a", logging.DEBUG) == "failed: a"
    now = 61.0
    assert log("b") == "failed: b (and 2 more like this)"
    assert log("c") == "failed: c"


@dataclass(eq=False)
class Known:
    """A connection as far as the choice of those to drop knows it."""

    step: str
    name: str = ""
    dropped: bool = False

    def address(self) -> str:
        return "127.0.0.1"

    def drop(self) -> None:
        self.dropped = True


def test_without_files_only_unfinished_requests_are_dropped() -> None:
    """Also if those that fill the files were accepted but are not known yet."""
    kept = [Known("idle"), Known("reply"), Known("head", "ada"), Known("idle", "ben")]
    connections = Connections()
    for each in kept:
        connections.opened(each)  # type: ignore[arg-type]
    connections.make_room()
    assert not any(each.dropped for each in kept)
    unfinished = [Known(step) for step in ("head", "body") * 6]
    for each in unfinished:
        connections.opened(each)  # type: ignore[arg-type]
    connections.make_room()
    assert [each.dropped for each in unfinished] == [True] * 8 + [False] * 4
    assert not any(each.dropped for each in kept)


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (192, 192))
from shfcas.cli import main
sys.exit(main(["annotate", sys.argv[1], "--port", "0"]))
"""


@pytest.mark.system
def test_a_thousand_half_requests_neither_close_the_page_nor_fill_the_disk(folder: Path, tmp_path: Path) -> None:
    """With few files for the process, as with the usual limit and an attacker on many machines."""
    errors = tmp_path / "errors"
    with errors.open("w") as stderr:
        command = [sys.executable, "-c", FEW_FILES, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout
        address = process.stdout.readline().partition(" at ")[2].partition(";")[0]
        links = dict(process.stdout.readline().split() for _ in range(2))
        page = Page(address, int(address.rstrip("/").rpartition(":")[2]), links)
        ada = signed_in(page)
        with ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(connect(page, HALF))
            assert ada.judge(ada.next()).status == 200
            assert signed_in(page, "ben").get("/").status == 200
    finally:
        process.terminate()
        process.wait()
    assert errors.stat().st_size < 20_000
