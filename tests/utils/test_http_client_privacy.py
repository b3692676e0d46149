"""The HTTP client keeps its key to the endpoint: errors, logs, cookies, proxies."""

import logging
import sys
import traceback

import pytest

from shfcas.utils.errors import UserError
from shfcas.utils.http_client import GaveUp, RequestError
from tests.support.http_cases import GOOD, KEY, Serve, client, get
from tests.support.raw_server import RawServer, response, say, send

pytestmark = pytest.mark.usefixtures("environment")


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
