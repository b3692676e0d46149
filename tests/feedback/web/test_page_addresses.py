"""The addresses under which a page answers: of this machine, of other machines, behind a proxy."""

import socket
from pathlib import Path

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.server import serve
from shfcas.utils.errors import UserError
from shfcas.utils.listening import reached_from_here_alone
from tests.support.page_client import Client, make_items, make_run, signed_in, token

SETTINGS = HumanConfig(port=0, repeat_share=0.0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_let_in_only_when_told(tmp_path: Path, host: str) -> None:
    settings = HumanConfig(port=0, host=host)
    with pytest.raises(UserError, match=r"not encrypted; .* or set allow_public"), serve(tmp_path, settings):
        pass


def test_a_page_for_other_machines_goes_by_this_machines_names(tmp_path: Path) -> None:
    make_run(tmp_path, make_items(1))
    with serve(tmp_path, HumanConfig(port=0, host="0.0.0.0", allow_public=True)) as page:
        port = page.port
        assert page.address == f"http://{socket.gethostname()}:{port}/"
        client = Client(f"http://127.0.0.1:{port}/")
        client.sign_in(token(page))
        for host in (f"{socket.gethostname()}:{port}", f"192.168.0.7:{port}", "[fe80::1]"):
            assert client.get("/api/me", Host=host).status == 200
        assert client.get("/api/me", Host="evil.example").status == 421


def test_behind_a_proxy_its_address_is_the_pages(tmp_path: Path) -> None:
    make_run(tmp_path, make_items(1))
    with serve(tmp_path, HumanConfig(port=0, address="https://labels.example.org")) as page:
        assert page.links["ada"].startswith("https://labels.example.org/#token=")
        client = Client(f"http://127.0.0.1:{page.port}/")
        reply = client.sign_in(token(page))
        assert "secure" in reply.headers["Set-Cookie"].lower()
        ways = [
            {"Host": "labels.example.org", "Origin": "https://labels.example.org"},
            {"Host": f"127.0.0.1:{page.port}", "Origin": "https://labels.example.org"},  # a proxy that names us itself
        ]
        for headers in ways:
            assert client.post("/api/judgements", {}, **headers).status == 400
        assert client.post("/api/judgements", {}, Origin="https://other.example.org").status == 403


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False)])
def test_loopback(host: str, own: bool) -> None:
    assert reached_from_here_alone(host) is own


def test_another_loopback_address_is_the_pages_own_name(tmp_path: Path) -> None:
    make_run(tmp_path, make_items(1))
    with serve(tmp_path, HumanConfig(port=0, host="127.0.0.2")) as page:
        assert page.address == f"http://127.0.0.2:{page.port}/"
        client = signed_in(page)
        assert client.get("/api/me").status == 200
        for foreign in ("127.0.0.3", "evil.example"):
            assert client.get("/api/me", Host=foreign).status == 421


@pytest.mark.parametrize("host", ["no such host", "a..b"])
@pytest.mark.parametrize("allow_public", [False, True])
def test_a_host_that_is_none(tmp_path: Path, host: str, allow_public: bool) -> None:
    settings = HumanConfig(port=0, host=host, allow_public=allow_public)
    with pytest.raises(UserError, match="host: expected an address of this machine"), serve(tmp_path, settings):
        pass
