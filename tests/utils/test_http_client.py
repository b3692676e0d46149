"""The HTTP client against servers that misbehave in every way, on real sockets of this machine."""

import pickle
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from shfcas.utils import http_client
from shfcas.utils.errors import UserError
from shfcas.utils.http_client import BadReply, Client, GaveUp, Refused
from tests.support.http_cases import GOOD, Serve, client, close, drip, first, get, half_closed, reset
from tests.support.raw_server import RawServer, Talk, read_request, response, say, send

pytestmark = pytest.mark.usefixtures("environment")


# Deadlines


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Header: ",
        b"HTTP/1.1 200 ",
    ],
    ids=["body", "body to the end", "error", "headers", "status line"],
)
def test_a_dripping_server_meets_the_deadline_of_each_attempt(start: bytes, serve: Serve) -> None:
    server = serve(drip(start))
    began = time.monotonic()
    with pytest.raises(GaveUp, match=r"^127\.0\.0\.1:\d+: no reply within 0\.3 seconds, after 2 attempts$"):
        get(server, timeout=0.3, max_retries=1)
    assert 0.6 <= time.monotonic() - began < 60 and len(server.requests) == 2


def test_a_server_that_never_accepts_a_connection_meets_the_connect_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "CONNECT_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(4):  # more than its queue takes
            other = waiting.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        with pytest.raises(GaveUp, match=r"no connection within 0\.3 seconds"):
            get(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")


def test_all_attempts_together_have_a_deadline(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that names short waits for ever."""
    monkeypatch.setattr(http_client, "LONGEST_BACKOFF", 0.1)
    server = serve(say(response(b"", "503 Busy", Retry_After="0.7")))
    with pytest.raises(GaveUp, match=r"status 503 \(no message\), after [1-5] attempts?$"):
        get(server, timeout=0.2, max_retries=9)  # 10 * (0.2 + 0.1) seconds, 10 waits of 0.7


# Sizes


def test_a_reply_is_read_up_to_the_limit_and_no_further(serve: Serve) -> None:
    sent = []

    def endless(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(1000):
            connection.sendall(b" " * 2**16)
            sent.append(2**16)

    with pytest.raises(Refused, match=r"sent a reply of more than 1,048,576 bytes, which is not read$"):
        get(serve(endless), max_retries=5)
    time.sleep(0.1)
    assert sum(sent) < 2**25  # what the sockets hold


def test_an_endless_error_is_cut(serve: Serve) -> None:
    server = serve(say(response(b"x" * 2**22, "400 Bad Request")))
    with pytest.raises(Refused, match=r"refuses the request \(400: x{200}\)$"):
        get(server)


# What passes


FAILURES: dict[str, tuple[Talk, str]] = {
    "hangs up": (close, r"no connection \(Server disconnected without sending a response\.\)"),
    "reset": (reset, r"no connection \(Connection reset by peer\)"),
    "half closed": (half_closed, r"no connection \(peer closed connection .*\)"),
    "no HTTP": (send(b"220 mail.example ESMTP\r\n\r\n"), r"no connection \(illegal status line.*\)"),
    "no gzip": (
        send(response(b"{}", Content_Encoding="gzip")),
        r"the reply cannot be read \(.*header check\)",
    ),
    "408": (send(response(b"", "408 Request Timeout")), r"status 408 \(no message\)"),
    "409": (send(response(b"", "409 Conflict")), r"status 409 \(no message\)"),
    "429": (send(response({"error": {"message": "slow down"}}, "429 X")), r"status 429 \(slow down\)"),
    "500": (send(response({"error": "broken"}, "500 X")), r"status 500 \(broken\)"),
    "502": (send(response(b"<html>bad gateway", "502 X")), r"status 502 \(<html>bad gateway\)"),
    "503": (send(response({"message": "loading", "code": 503}, "503 X")), r"status 503 \(loading\)"),
    "nested": (send(response(b"[" * 50_000, "500 X")), r"status 500 \(\[{200}\)"),
    "a page": (send(response(b"<html>\nplease log in")), r"the reply is not JSON \(<html> please log in\)"),
    "empty": (send(response(b" ")), r"the reply is empty"),
    "deep": (send(response(b"[" * 100_000)), r"the reply is not JSON \(\[{200}\)"),
    "not text": (send(response(b"\xff\xfe\xfd")), r"the reply is not JSON \(.*\)"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_what_may_pass_is_sent_again(kind: str, serve: Serve) -> None:
    failure, message = FAILURES[kind]
    server = serve(first(failure))
    retrying = client(server.url, max_retries=1)
    assert retrying.request("POST", f"{server.url}/x", {"question": 6}) == {"answer": 42}
    assert retrying.retries == 1 and len(server.requests) == 2
    assert all(request.endswith(b'{"question": 6}') for request in server.requests)
    with pytest.raises(GaveUp, match=rf"^127\.0\.0\.1:\d+: {message}, after 1 attempt$"):
        get(serve(failure))


def test_a_reader_may_ask_for_another_reply(serve: Serve) -> None:
    server = serve(say(response({"answer": 0}), GOOD))

    def read(reply: Any) -> int:
        if reply["answer"] == 0:
            raise BadReply("the answer is 0")
        return reply["answer"]

    assert client(server.url, max_retries=1).request("GET", server.url, None, read) == 42
    with pytest.raises(GaveUp, match="the answer is 0, after 2 attempts"):
        client(server.url, max_retries=1).request("GET", serve(say(response({"answer": 0}))).url, None, read)


def test_nobody_there() -> None:
    with pytest.raises(GaveUp, match=r"^127\.0\.0\.1:9: no connection \(Connection refused\), after 2 attempts$"):
        get("http://127.0.0.1:9/v1", max_retries=1)
    with pytest.raises(GaveUp, match=r"^no-such-host\.invalid: no connection \([A-Z].*\), after 1 attempt$"):
        get("http://no-such-host.invalid/v1")


def test_own_waits_are_repeatable(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        Client, "_sleep_until", lambda self, moment, stop: waits.append(round(moment - time.monotonic(), 1))
    )
    server = serve(say(response(b"", "500 X")))
    with pytest.raises(GaveUp, match="after 4 attempts"):
        get(server, max_retries=3, retry_wait=8.0, rng=random.Random(0))
    once = waits[1:]
    waits.clear()
    state = random.getstate()
    with pytest.raises(GaveUp):
        get(server, max_retries=3, retry_wait=8.0, rng=random.Random(0))
    assert waits[1:] == once and once[0] < once[1] < once[2] < 32
    with pytest.raises(GaveUp):
        get(server, max_retries=3, retry_wait=8.0)
    assert random.getstate() == state  # seeds of others are not touched


# What does not pass


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (response({"error": {"message": "too long"}}, "400 Bad Request"), r"refuses the request \(400: too long\)"),
        (response({"detail": "Not Found"}, "404 Not Found"), r"refuses the request \(404: Not Found\)"),
        (response(b"", "405 Method Not Allowed"), r"refuses the request \(405: no message\)"),
        (response({"error": {"message": "no", "code": "insufficient_quota"}}, "429 X"), r"refuses .* \(429: no\)"),
        (response(b"wrong", "401 Unauthorized"), r"refuses the key \(401\); check SOME_KEY"),
        (response(b"wrong", "403 Forbidden"), r"refuses the key \(403\); check SOME_KEY"),
        (
            response(b"", "429 X", Retry_After="86400"),
            r"asks to wait 86400 seconds \(status 429 \(no message\)\); start again",
        ),
    ],
)
def test_what_does_not_pass_is_sent_once(reply: bytes, message: str, serve: Serve) -> None:
    server = serve(say(reply))
    with pytest.raises(Refused, match=rf"^127\.0\.0\.1:\d+ {message}") as caught:
        get(server, max_retries=5, retry_wait=10.0)
    assert len(server.requests) == 1 and "\n" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.failure) == (str(caught.value), caught.value.failure)


def test_a_server_that_wants_a_key(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY")
    server = serve(say(response(b"", "401 Unauthorized")))
    with pytest.raises(Refused, match=r"asks for a key \(401\); set SOME_KEY$"):
        get(server)
    assert b"authorization" not in server.requests[0].lower()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, serve: Serve) -> None:
    other = serve(say(GOOD))
    server = serve(say(response(b"", f"{status} Moved", Location=f"{other.url}/models?token=x")))
    with pytest.raises(Refused, match=rf"redirects to {other.url}/models \({status}\), .*; set base_url to the new"):
        get(server, max_retries=3)
    assert not other.requests and len(server.requests) == 1


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    subprocess.run([*command.split(), "-addext", "subjectAltName=IP:127.0.0.1"], cwd=tmp_path, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    class Secure(RawServer):
        def _serve(self, connection: socket.socket) -> None:
            try:
                super()._serve(context.wrap_socket(connection, server_side=True))
            except OSError:
                connection.close()

    with Secure(say(GOOD)) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(
            Refused, match=r"has a certificate that is not trusted \(self.signed certificate\); set SSL"
        ):
            get(url, max_retries=5, retry_wait=10.0)
        assert not server.requests
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert get(url) == {"answer": 42}
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match=r"^SSL_CERT_FILE, SSL_CERT_DIR: the certificates cannot be read"):
        get(url)


# Retry-After


def date_in(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def test_a_date_is_waited_for(serve: Serve) -> None:
    server = serve(first(lambda c, request: c.sendall(response(b"", "503 X", Retry_After=date_in(2.5)))))
    began = time.monotonic()
    assert get(server, max_retries=1, retry_wait=60.0) == {"answer": 42}
    assert 0.5 < time.monotonic() - began < 60  # dates have whole seconds
    with pytest.raises(Refused, match=r"asks to wait (8\d\d|900) seconds"):
        get(serve(say(response(b"", "429 X", Retry_After=date_in(900)))), max_retries=1)


def test_a_busy_server_is_left_alone_by_all_threads(serve: Serve) -> None:
    arrivals: list[float] = []

    def talk(connection: socket.socket, request: bytes) -> None:
        while request:
            arrivals.append(time.monotonic())
            connection.sendall(GOOD if len(arrivals) > 1 else response(b"", "429 X", Retry_After="0.5"))
            request = read_request(connection)

    server = serve(talk)
    shared = client(server.url, max_retries=1)
    threads = [threading.Thread(target=shared.request, args=("GET", server.url)) for _ in range(6)]
    threads[0].start()
    while not arrivals or not shared._not_before:
        time.sleep(0.01)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(arrivals) == 7 and min(arrivals[1:]) - arrivals[0] >= 0.5


def test_a_wait_of_zero_does_not_replace_our_own(serve: Serve) -> None:
    server = serve(first(send(response(b"", "429 X", Retry_After="0"))))
    began = time.monotonic()
    assert get(server, max_retries=1, retry_wait=0.4) == {"answer": 42}
    assert time.monotonic() - began >= 0.3
