"""The page behind a real reverse proxy: under a path, with single sign-on, and for observers."""

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.annotators import add_annotators
from shfcas.feedback.web.server import Page, serve
from shfcas.utils.errors import UserError
from tests.support.page_client import Client, log, signed_in, token

SETTINGS: dict[str, Any] = {"port": 0, "repeat_share": 0.0}


@contextmanager
def proxy(port: int, strip: str = "", user: str | None = None, source: str = "127.0.0.1") -> Iterator[str]:
    """Passes requests on, without a prefix of the path and with the name of a user; yields host and port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            names = {"x-remote-user", "connection", "content-length"}
            headers = {name: value for name, value in self.headers.items() if name.lower() not in names}
            if user is not None:
                headers["X-Remote-User"] = user
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
            upstream.request(self.command, self.path.removeprefix(strip) or "/", body, headers)
            reply = upstream.getresponse()
            content = reply.read()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in ("content-length", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_POST = pass_on

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("strip", ["", "/lab/els"])
def test_the_page_works_under_a_path(folder: Path, strip: str) -> None:
    settings = HumanConfig(**SETTINGS, root_path="/lab/els")
    with serve(folder, settings) as page, proxy(page.port, strip) as place:
        assert page.address.endswith("/lab/els/")
        client = Client(f"http://{place}/")
        html = client.get("/lab/els/").content.decode()
        assert 'src="/lab/els/static/page.js"' in html and 'href="/lab/els/static/page.css"' in html
        for path in ("static/page.js", "static/page.css"):
            assert client.get(f"/lab/els/{path}").status == 200
        reply = client.post("/lab/els/api/sign-in", {"token": token(page)})
        assert reply.status == 200 and "Path=/lab/els/" in reply.headers["Set-Cookie"]
        client.csrf = reply.json()["csrf"]
        task = client.get("/lab/els/api/next").json()["task"]
        body = {"id": "11111111-2222", "item": task["id"], "shown": task["shown"], "choice": "left"}
        assert client.post("/lab/els/api/judgements", body).status == 200
        assert Client(f"http://{place}/").get("/lab/els/dashboard").headers["Location"] == "/lab/els/"
        if not strip:
            assert client.get("/lab/els").headers["Location"] == "/lab/els/"
            assert client.get("/lab/elsewhere").status == 404
    assert len(log(folder)) == 1


@pytest.fixture
def trusting(folder: Path) -> Iterator[Page]:
    settings = HumanConfig(**SETTINGS, user_header="X-Remote-User", user_header_from=["127.0.7.1"])
    with serve(folder, settings) as page:
        yield page


def test_a_trusted_proxy_signs_people_in(trusting: Page, folder: Path) -> None:
    with proxy(trusting.port, user="ada", source="127.0.7.1") as place:
        client = Client(f"http://{place}/")
        client.csrf = client.get("/api/me").json()["csrf"]
        assert client.get("/api/me").json()["name"] == "ada"
        # A visitor's own header does not arrive.
        assert client.get("/api/me", **{"X-Remote-User": "ben"}).json()["name"] == "ada"
        assert client.judge(client.next()).status == 200
        assert client.get("/api/sessions").json() == {"sessions": []}
        csrf, client.csrf = client.csrf, "0" * 64
        assert client.judge(client.next()).status == 403
        client.csrf = csrf
    assert [j.annotator for j in log(folder)] == ["ada"]
    with proxy(trusting.port, user="mallory", source="127.0.7.1") as place:
        reply = Client(f"http://{place}/").get("/api/me")
        assert (reply.status, reply.json()["code"]) == (403, "unknown")
    with proxy(trusting.port, source="127.0.7.1") as place:
        assert Client(f"http://{place}/").get("/api/me").status == 401


def test_the_header_means_nothing_from_elsewhere(trusting: Page) -> None:
    with proxy(trusting.port, user="ada", source="127.0.7.2") as place:
        assert Client(f"http://{place}/").get("/api/me").status == 401
    client = signed_in(trusting, "ben")  # links still work
    assert client.get("/api/me", **{"X-Remote-User": "ada"}).json()["name"] == "ben"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_header": "X-User"}, "user_header_from: expected addresses together with user_header"),
        ({"user_header_from": ["127.0.0.1"]}, "user_header_from: expected addresses together"),
        ({"user_header": "X-User", "user_header_from": ["localhost"]}, "expected numeric addresses"),
        ({"user_header": "X User", "user_header_from": ["127.0.0.1"]}, "user_header: expected a header's name"),
        ({"root_path": "labels/"}, "root_path: expected a path"),
        ({"root_path": "/../x"}, "root_path: expected a path"),
        ({"overlap": 1, "max_overlap": 3}, "max_overlap: expected at least overlap"),
        ({"overlap": 3, "max_overlap": 2}, "max_overlap: expected at least overlap"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HumanConfig(**SETTINGS, **settings).check()


def test_observers_see_the_dashboard_and_change_nothing(folder: Path) -> None:
    add_annotators(folder, [], ["eva"])
    with serve(folder, HumanConfig(**SETTINGS)) as page:
        task = signed_in(page).next()
        eva = signed_in(page, "eva")
        assert eva.get("/").headers["Location"] == "/dashboard"
        assert "Comparisons</a>" not in eva.get("/dashboard").content.decode()
        assert eva.get("/api/dashboard").json()["report"]["states"]["open"] == 6
        assert eva.get("/api/me").json()["observes"] is True
        refused = [eva.get("/api/next"), eva.judge(task), eva.post("/api/undo", {}), eva.post("/api/why", {})]
        assert [(reply.status, reply.json()["code"]) for reply in refused] == [(403, "observer")] * 4
        assert eva.post("/api/sign-out", {}).status == 200 and eva.get("/api/me").status == 401
    assert log(folder) == []
