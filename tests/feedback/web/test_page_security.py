"""Who gets in, and what other sites, other people and hostile texts cannot do; over real HTTP."""

import http.client
import json
import logging
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web import api, pages
from shfcas.feedback.web import app as web_app
from shfcas.feedback.web.annotators import FILE, add_annotators
from shfcas.feedback.web.guidelines import render_guidelines
from shfcas.feedback.web.security import FailedSignIns, Refused, printable
from shfcas.feedback.web.server import Page, serve
from tests.support.page_client import Client, make_items, make_run, signed_in, token

SETTINGS = HumanConfig(port=0, repeat_share=0.0)
READS = ["/api/me", "/api/next", "/api/dashboard", "/api/sessions"]
CHANGES = ["/api/judgements", "/api/undo", "/api/why", "/api/sign-out", "/api/sessions/end"]
GUIDELINES = "# Rules <script>alert(1)</script>\n\n[bad](javascript:alert(1)) [good](https://example.org)\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, make_items(50))
    (folder / "rules.md").write_text(GUIDELINES)
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[Page]:
    settings = HumanConfig(port=0, repeat_share=0.0, guidelines=str(folder / "rules.md"))
    with serve(folder, settings) as page:
        yield page


def records(folder: Path) -> int:
    with Store(folder / "feedback.sqlite") as store:
        return len(store.judgements())


# Signing in


def test_everything_but_the_sign_in_needs_a_session(page: Page) -> None:
    client = Client(page.address)
    for path in READS:
        reply = client.get(path)
        assert (reply.status, reply.json()["code"]) == (401, "session")
    for path in CHANGES:
        assert client.post(path, {}).status == 401
    for path in ("/dashboard", "/guidelines"):
        reply = client.get(path)
        assert (reply.status, reply.headers["Location"], reply.content) == (303, "/", b"")
    assert client.get("/").status == 200
    assert "question" not in client.get("/").content.decode()


def test_no_route_was_forgotten(folder: Path) -> None:
    """A route that is added later has to be added to the lists above, too."""
    with Store(folder / "feedback.sqlite") as store:
        from shfcas.feedback.web.desk import Desk

        guard = web_app.make_app(folder, Desk(store, SETTINGS), SETTINGS)
    app: FastAPI = guard._app  # type: ignore
    routes = {(path, method.upper()) for path, methods in app.openapi()["paths"].items() for method in methods}
    known = {(path, "GET") for path in [*READS, "/", "/dashboard", "/guidelines", "/static/{name}"]}
    assert routes == known | {(path, "POST") for path in [*CHANGES, "/api/sign-in"]}
    assert len(app.routes) == 2  # the two routers, and nothing that openapi() leaves out
    assert all(isinstance(route, APIRoute) for router in (pages.router, api.router) for route in router.routes)
    assert len(routes) == len(pages.router.routes) + len(api.router.routes)


def test_the_session_cookie_is_out_of_reach_of_scripts_and_other_sites(page: Page) -> None:
    client = Client(page.address)
    reply = client.sign_in(token(page))
    (cookie,) = reply.headers.get_all("Set-Cookie", [])
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert token(page) not in cookie and client.csrf not in cookie
    assert "secure" not in cookie.lower()  # it is plain HTTP here
    assert signed_in(page, "ben").cookies != client.cookies


def test_a_wrong_token_does_not_sign_in(page: Page) -> None:
    client = Client(page.address, source="127.0.1.1")
    for wrong in ["", "0" * 32, None, 5, ["a"], "\ud800", "ada", "é" * 32]:
        assert client.post("/api/sign-in", {"token": wrong}).status == 401
    assert client.post("/api/sign-in", {}).status == 401
    assert client.cookies == {}


@pytest.mark.parametrize("cookie", ["", "x", "0" * 64, "\xe9" * 64])
def test_a_wrong_cookie_is_nobody(page: Page, cookie: str) -> None:
    client = signed_in(page)
    client.cookies = dict.fromkeys(client.cookies, cookie)
    assert client.get("/api/me").status == 401


def test_a_token_is_no_cookie_and_a_cookie_no_token(page: Page) -> None:
    client = signed_in(page)
    (name, cookie), other = next(iter(client.cookies.items())), Client(page.address, source="127.0.3.1")
    other.cookies = {name: token(page)}
    assert other.get("/api/me").status == 401
    assert other.post("/api/sign-in", {"token": cookie}).status == 401


def test_too_many_wrong_tokens_have_to_wait_and_keep_nobody_out(page: Page) -> None:
    guesser = Client(page.address, source="127.0.4.1")
    statuses = [guesser.sign_in("0" * 32).status for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    reply = guesser.sign_in("1" * 32)
    assert reply.status == 429 and 0 < int(reply.headers["Retry-After"]) <= 60
    # Behind a proxy, whoever has a token comes from the same address as whoever has none.
    assert guesser.sign_in(token(page)).status == 200
    assert guesser.sign_in("0" * 32).status == 429


def test_nobody_says_to_be_somewhere_else(tmp_path: Path) -> None:
    make_run(tmp_path, make_items(1))
    with serve(tmp_path, SETTINGS) as page:
        guesser = Client(page.address)
        forged = [{"X-Forwarded-For": f"10.0.0.{i}", "Forwarded": f"for=10.0.0.{i}"} for i in range(11)]
        statuses = [guesser.post("/api/sign-in", {"token": "0" * 32}, **headers).status for headers in forged]
        assert statuses == [401] * 10 + [429]


def test_failures_are_forgotten_in_time_and_memory_is_bounded() -> None:
    now = 0.0
    failures = FailedSignIns(most=2, seconds=60, clock=lambda: now)
    failures.failed("a")
    now = 50.0
    failures.failed("a")
    with pytest.raises(Refused, match="wait 10 s") as refused:
        failures.check("a")
    assert refused.value.headers == {"Retry-After": "10"}
    failures.check("b")
    now = 61.0
    failures.check("a")
    for i in range(3 * FailedSignIns.KEPT):
        failures.failed(str(i))
    assert len(failures._failures) == FailedSignIns.KEPT


# Restarts, and people who come and go


def test_a_browser_goes_on_after_a_restart(folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path, make_items(4))
    with serve(tmp_path, SETTINGS) as first:
        client = signed_in(first)
        task = client.next()
    with serve(tmp_path, SETTINGS) as second:
        later = Client(second.address)
        later.cookies, later.csrf = client.cookies, client.csrf
        assert later.get("/api/me").json()["name"] == "ada"
        assert later.judge(task).json()["new"] is True


def test_pages_of_two_runs_on_one_machine_do_not_sign_each_other_out(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, make_items(1))
    with serve(tmp_path / "one", SETTINGS) as one, serve(tmp_path / "two", SETTINGS) as two:
        clients = [signed_in(one), signed_in(two)]
        both = clients[0].cookies | clients[1].cookies  # a browser's cookies know no ports
        assert len(both) == 2
        for client in clients:
            client.cookies = both
            assert client.get("/api/me").status == 200


def test_people_come_and_go_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_run(tmp_path, make_items(4))
    with serve(tmp_path, SETTINGS) as page:
        ada, ben = signed_in(page), signed_in(page, "ben")
        tokens = add_annotators(tmp_path, ["cleo"])
        cleo = Client(page.address)
        assert cleo.sign_in(tokens["cleo"]).json()["name"] == "cleo"
        lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
        (tmp_path / FILE).write_text("".join(line for line in lines if not line.startswith("ada ")))
        assert [client.get("/api/me").status for client in (ada, ben, cleo)] == [401, 200, 200]
        (tmp_path / FILE).write_text("ben\n")  # a slip during an edit
        assert [client.get("/api/me").status for client in (ada, ben, cleo)] == [401, 200, 200]
        assert "line 1: expected a name and a token" in caplog.text
        (tmp_path / FILE).unlink()
        assert ben.get("/api/me").status == 200


# Other sites


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8900",
        "127.0.0.1.evil.example",
        "localhost.",
        "10.0.0.1",
        "",
        "a b",
        "[::1",
        "0x7f.1",
    ],
)
def test_a_foreign_name_gets_nothing(page: Page, host: str) -> None:
    """As after DNS rebinding: the name of another site has come to mean this machine."""
    client = signed_in(page)
    for path in ["/", "/static/page.js", *READS]:
        reply = client.get(path, Host=host)
        assert reply.status in (400, 421) and b"csrf" not in reply.content
    assert client.post("/api/judgements", {}, Host=host).status in (400, 421)


def test_the_names_of_this_machine_are_known_at_any_port(page: Page) -> None:
    client = signed_in(page)
    for host in ("localhost:9999", "127.0.0.1", "LOCALHOST", "[::1]:1"):  # through an SSH tunnel
        assert client.get("/api/me", Host=host).status == 200
        same = {"Host": host, "Origin": f"http://{host}"}
        assert client.post("/api/judgements", {}, **same).status == 400  # gets as far as being looked at


FOREIGN = {
    "another site": {"Origin": "https://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "a sandbox": {"Origin": "null"},
    "no origin": {"Origin": None},
    "a name that begins alike": {"Origin": "http://127.0.0.1.evil.example"},
    "a file": {"Origin": "file://"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "no csrf": {"X-CSRF-Token": None},
    "wrong csrf": {"X-CSRF-Token": "0" * 64},
    "odd csrf": {"X-CSRF-Token": "\xe9"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
def test_only_the_page_itself_changes_anything(folder: Path, page: Page, headers: dict[str, str | None]) -> None:
    client = signed_in(page)
    task, before = client.next(), records(folder)
    body = {"id": "11111111-2222", "item": task["id"], "shown": task["shown"], "choice": "left"}
    for path in CHANGES:
        assert client.post(path, body, **headers).status == 403
    assert records(folder) == before
    if "csrf" not in str(headers).lower() or headers["X-CSRF-Token"] is None:
        assert client.post("/api/sign-in", {"token": token(page)}, **headers).status == 403


def test_the_token_of_another_persons_page_does_not_fit(page: Page) -> None:
    """Or answers that one person gave in one tab would become those of another who signed in in a second one."""
    ada, ben = signed_in(page), signed_in(page, "ben")
    ada.cookies = ben.cookies
    reply = ada.post("/api/judgements", {})
    assert (reply.status, reply.json()["code"]) == (403, "csrf")


def test_other_sites_can_neither_read_nor_lease(page: Page) -> None:
    client = signed_in(page)
    for site in ("cross-site", "same-site"):
        for path in READS:
            assert client.get(path, **{"Sec-Fetch-Site": site}).status == 403
    assert client.get("/", **{"Sec-Fetch-Site": "cross-site"}).status == 200  # a sign-in link from a mail
    for method, path in (("GET", "/api/me"), ("OPTIONS", "/api/judgements"), ("GET", "/")):
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        reply = client.send(method, path, headers=headers)
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_a_form_cannot_be_a_request(page: Page) -> None:
    client = signed_in(page)
    for kind in ("text/plain", "application/x-www-form-urlencoded", None):
        assert client.post("/api/judgements", b"{}", **{"Content-Type": kind}).status == 415


# What every reply carries

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@pytest.mark.parametrize(
    "path", ["/", "/dashboard", "/guidelines", "/static/page.js", "/api/next", "/nope", "/api/nope"]
)
@pytest.mark.parametrize("someone", [True, False])
def test_headers(page: Page, path: str, someone: bool) -> None:
    client = signed_in(page) if someone else Client(page.address)
    for host in (None, "evil.example"):
        reply = client.get(path, **({"Host": host} if host else {}))
        assert reply.headers["Content-Security-Policy"] == CSP
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        cached = "no-cache" if path == "/static/page.js" and not host else "no-store"
        assert reply.headers["Cache-Control"] == cached
        assert "Server" not in reply.headers


def test_no_page_describes_the_routes(page: Page) -> None:
    client = signed_in(page)
    for path in ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect"):
        assert client.get(path).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..\\app.py",
        "/static/page.js%00.png",
        "/static/",
        "/static",
        "/feedback.sqlite",
        "/annotators.txt",
        "/../annotators.txt",
        "/templates/index.html.j2",
    ],
)
def test_no_path_leads_to_a_file(page: Page, path: str) -> None:
    assert signed_in(page).get(path).status == 404


# What is too much


def test_a_large_body_is_refused_before_it_is_read(page: Page) -> None:
    client = signed_in(page)
    assert client.post("/api/judgements", {"comment": "a" * 70_000}).status == 413
    task = signed_in(page).next()
    client = signed_in(page)
    assert client.judge(task, comment="a" * 10_001).status == 413
    connection = http.client.HTTPConnection(client.place, timeout=30)
    headers = {
        "Origin": f"http://{client.place}",
        "X-CSRF-Token": client.csrf,
        "Content-Type": "application/json",
        "Cookie": "; ".join(f"{name}={value}" for name, value in client.cookies.items()),
    }

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 65_536

    try:
        connection.request("POST", "/api/judgements", endless(), headers, encode_chunked=True)
    except (ConnectionError, TimeoutError):
        pass  # the server hung up while we were still talking
    else:
        assert connection.getresponse().status == 413
    assert signed_in(page).get("/api/me").status == 200


def test_ten_thousand_characters_of_any_kind_fit(page: Page) -> None:
    client = signed_in(page)
    for letter in ("\U0001f600", "\x07"):
        task = client.next()
        body = {"id": str(uuid.uuid4()), "item": task["id"], "shown": task["shown"], "choice": "flag"}
        body["comment"] = letter * 10_000
        # as JavaScript writes JSON
        assert client.post("/api/judgements", json.dumps(body, ensure_ascii=False).encode()).status == 200


def test_too_many_held_items_are_refused(page: Page) -> None:
    assert signed_in(page).get("/api/next?" + "&".join(["held=x"] * 101)).status == 400


@pytest.mark.parametrize("start", [b"GARBAGE", b"GET / HTTP/1.1", b"\x1b[31m", b"GET /\x1b[31m HTTP/1.1\r\nHost: a"])
def test_what_is_no_request_does_not_stop_the_server(page: Page, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
        connection.sendall(start + b"\r\n\r\n")
        assert b" 400 " in connection.recv(4096)
    assert Client(page.address).get("/").status == 200


# The log


def test_the_log_has_no_tokens_and_nothing_that_a_terminal_obeys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    # A command that ran in this process before has set a level, and left a handler whose stream is closed.
    caplog.set_level(logging.DEBUG, logger="shfcas")
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    tokens = make_run(tmp_path, make_items(3, first_text="\x1b[2Jwhale"))
    with serve(tmp_path, SETTINGS) as page:
        client = Client(page.address)
        client.sign_in(tokens["ada"])
        client.get(f"/?token={tokens['ada']}")
        client.get("/%1b%5b31m%e2%80%ae?x=%1b")
        client.sign_in("wrong-token-wrong-token")
        task = client.next()
        client.judge(task, comment="\x1b[31mwalrus")
        client.judge(task, id="\x1b[31mid")

        def broken(*_: object) -> None:
            raise RuntimeError("a fault near \x1b[31m\u202etext")

        monkeypatch.setattr(Store, "item", broken)
        reply = client.judge(task)
        assert reply.status == 500 and reply.json() == {"error": "the server failed; its log says why"}
        cookie = next(iter(client.cookies.values()))
    output = caplog.text + "".join(capfd.readouterr())
    assert "POST /api/judgements 200" in output and "GET /\\x1b[31m\\u202e 404" in output
    assert "RuntimeError: a fault near \\x1b[31m\\u202etext" in output
    for secret in (*tokens.values(), cookie, client.csrf, "wrong-token"):
        assert secret not in output
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", output)
    assert "whale" not in output and "walrus" not in output


def test_printable() -> None:
    assert printable("a\tb\nc é 漢 \U0001f600") == "a\tb\nc é 漢 \U0001f600"
    assert printable("\x00\r\x7f\x9b\u202e\u2066\u2028\ud800") == "\\x00\\r\\x7f\\x9b\\u202e\\u2066\\u2028\\ud800"


# Guidelines


def test_guidelines_are_shown_and_cannot_run_anything(page: Page) -> None:
    html = signed_in(page).get("/guidelines").content.decode()
    assert "Rules &lt;script&gt;alert(1)&lt;/script&gt;" in html and "alert(1)</script>" not in html
    assert "[bad](javascript:alert(1))" in html
    assert '<a href="https://example.org" rel="noopener noreferrer" target="_blank">good</a>' in html


@pytest.mark.parametrize(
    "link",
    [
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](java&#x73;cript:alert(1))",
        "[a](vbscript:x)",
        "[a](data:text/html,<script>alert(1)</script>)",
        "<javascript:alert(1)>",
        "![a](javascript:alert(1))",
        "[a]: javascript:alert(1)\n\n[a]",
        '<a href="javascript:alert(1)">a</a>',
        "<img src=x onerror=alert(1)>",
    ],
)
def test_no_link_runs_a_script(tmp_path: Path, link: str) -> None:
    (tmp_path / "rules.md").write_text(link)
    html = render_guidelines(str(tmp_path / "rules.md"))
    assert not re.search(r"<(a|img|script)\b", html)


def test_markdown_that_people_use(tmp_path: Path) -> None:
    (tmp_path / "rules.md").write_text("| a | b |\n|---|---|\n| 1 | 2 |\n\n~~no~~ [up](#top)\n")
    html = render_guidelines(str(tmp_path / "rules.md"))
    assert "<td>1</td>" in html and "<s>no</s>" in html and '<a href="#top">up</a>' in html
    assert render_guidelines(None) == ""
