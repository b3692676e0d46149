"""The HTTP client against servers that misbehave in every way, on real sockets of this machine."""

import gc
import gzip
import itertools
import json
import logging
import os
import pickle
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from shfcas.utils import http_client
from shfcas.utils.errors import UserError
from shfcas.utils.http import Endpoint
from shfcas.utils.http_client import BadReply, Client, GaveUp, Refused, RequestError, Stopped
from tests.support.raw_server import RawServer, Talk, compressed, read_request, response, say, send

KEY = "sk-quince/medlar+secret"  # letters that no port and no address in memory contains
GOOD = response({"answer": 42})
Serve = Callable[..., RawServer]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)  # reading certificates takes a while


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as servers:
        yield lambda talk, host="127.0.0.1": servers.enter_context(RawServer(talk, host))


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


# Deadlines


def drip(start: bytes) -> Talk:
    """Sends a start, then one byte every 20 ms for 100 seconds."""

    def talk(connection: socket.socket, request: bytes) -> None:
        connection.sendall(start)
        for _ in range(5000):
            time.sleep(0.02)
            connection.sendall(b"x")

    return talk


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


def test_the_limit_counts_bytes_after_decompression(serve: Serve) -> None:
    bomb = compressed(b" " * 2**26)
    assert len(bomb) < 2**17
    with pytest.raises(Refused, match=r"more than 1,048,576 bytes"):
        get(serve(say(bomb)))
    twice = response(gzip.compress(gzip.compress(b" " * 2**26)), Content_Encoding="gzip, gzip")
    with pytest.raises(Refused, match=r"more than 1,048,576 bytes"):
        get(serve(say(twice)))
    assert get(serve(say(compressed(b'{"answer": 42}')))) == {"answer": 42}


def test_an_endless_error_is_cut(serve: Serve) -> None:
    server = serve(say(response(b"x" * 2**22, "400 Bad Request")))
    with pytest.raises(Refused, match=r"refuses the request \(400: x{200}\)$"):
        get(server)


# What passes


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


FAILURES: dict[str, tuple[Talk, str]] = {
    "hangs up": (close, r"no connection \(Server disconnected without sending a response\.\)"),
    "reset": (reset, r"no connection \(Connection reset by peer\)"),
    "half closed": (half_closed, r"no connection \(peer closed connection .*\)"),
    "no HTTP": (send(b"220 mail.example ESMTP\r\n\r\n"), r"no connection \(illegal status line.*\)"),
    "no gzip": (send(response(b"{}", Content_Encoding="gzip")), r"no connection \(.*incorrect header check\)"),
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


# The key


ECHOES = {
    "reason phrase": response(b"", f"500 {KEY}"),
    "reason phrase of a refusal": response(b"", f"418 {KEY}"),
    "error": response({"error": {"message": f"bad key {KEY}", "code": KEY}}, "400 X"),
    "error, escaped": response(b'{"error": {"message": "' + KEY.replace("/", "\\/").encode() + b'"}}', "500 X"),
    "refused key": response({"error": {"message": KEY}}, "401 X"),
    "page": response(f"<a href='?key={KEY.replace('/', '%2F').replace('+', '%2B')}'>".encode(), "500 X"),
    "no JSON": response(KEY.encode()),
    "headers": response(b"", "500 X", X_Echo=KEY, Set_Cookie=f"key={KEY}", WWW_Authenticate=KEY),
    "redirect": response(b"", "307 X", Location=f"http://elsewhere.example/{KEY}?key={KEY}"),
    "retry after": response(b"", "429 X", Retry_After=KEY),
    "no HTTP": KEY.encode() + b"\r\n\r\n",
    "broken header": b"HTTP/1.1 200 OK\r\n" + KEY.encode() + b"\r\n\r\n",
    "half a reply": response(KEY.encode())[:-2],
}


@pytest.mark.parametrize("kind", ECHOES)
def test_the_key_is_in_no_error_log_or_repr(kind: str, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    server = serve(send(ECHOES[kind]))
    mine = client(server.url, max_retries=1)
    with pytest.raises(RequestError) as caught:
        mine.request("POST", f"{server.url}/x", {"a": 1})
    error = caught.value
    shown = ["".join(traceback.format_exception(error)), repr(error), repr(vars(error)), repr(mine), repr(vars(mine))]
    shown += [repr((error.__cause__, error.__context__)), caplog.text]
    plain = "".join(shown).replace("\\/", "/").replace("%2F", "/").replace("%2B", "+")
    assert f"Bearer {KEY}".encode() in server.requests[0]
    assert KEY not in plain and "medlar" not in plain.lower()


def test_the_libraries_still_log_for_others(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    import httpx2

    caplog.set_level(logging.INFO)
    server = serve(say(GOOD))
    get(server)
    assert "HTTP Request" not in caplog.text
    httpx2.get(server.url, trust_env=False)
    assert "HTTP Request" in caplog.text


def test_cookies_are_not_kept(serve: Serve) -> None:
    server = serve(say(response({}, Set_Cookie="session=1; Path=/", Connection="close")))
    mine = client(server.url)
    for _ in range(2):
        mine.request("GET", server.url)
    assert len(server.requests) == 2 and b"cookie" not in server.requests[1].lower()


# Proxies


@pytest.fixture
def proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> RawServer:
    """A proxy that all variables name; it answers itself."""
    server = serve(say(response({"answer": "by the proxy"})))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://{server.host}")
        monkeypatch.setenv(name.upper(), f"http://{server.host}")
    return server


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "0.0.0.0", "[::1]"])
def test_loopback_addresses_are_never_asked_for_at_a_proxy(name: str, serve: Serve, proxy: RawServer) -> None:
    server = serve(say(GOOD), "::1" if name == "[::1]" else "127.0.0.1")
    assert get(f"http://{name}:{server.host.rpartition(':')[2]}/v1") == {"answer": 42}
    assert not proxy.requests


def test_other_addresses_go_to_the_proxy(proxy: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get("http://server.invalid/v1") == {"answer": "by the proxy"}
    assert proxy.requests[0].startswith(b"GET http://server.invalid/v1/models HTTP/1.1\r\n")
    monkeypatch.setenv("NO_PROXY", "server.invalid")
    with pytest.raises(GaveUp, match="no connection"):
        get("http://server.invalid/v1")
    assert len(proxy.requests) == 1


def test_a_proxy_does_not_see_what_is_encrypted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(say(response(b"", "407 Proxy Authentication Required")))
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:word@{server.host}")
    message = r"no connection through the proxy of the environment \(407 Proxy Authentication Required\)"
    with pytest.raises(GaveUp, match=message):
        get("https://server.invalid/v1")
    assert server.requests[0].startswith(b"CONNECT server.invalid:443") and KEY.encode() not in server.requests[0]


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        (
            "ftp://me:password@proxy.example:1",
            r"the proxy for server\.invalid has no usable address; check HTTPS_PROXY",
        ),
        ("http://me:password@proxy.example:port", r"the proxy for server\.invalid has no usable address"),
    ],
)
def test_a_proxy_that_cannot_be_used(proxy: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(UserError, match=message) as caught:
        get("https://server.invalid/v1")
    assert "password" not in str(caught.value)


def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:1")
    with pytest.raises(UserError, match=r"speaks SOCKS, for which socksio is needed; .*pip install socksio$"):
        get("https://server.invalid/v1")


# Connections and threads


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
    server = serve(say(response(b"", "429 X", Retry_After="500")))
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
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
