"""Sign-ins: each browser's own, listed, and ended on the server."""

import stat
from pathlib import Path

import pytest

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web.annotators import FILE as ANNOTATORS
from shfcas.feedback.web.security import FailedSignIns, Refused, without_paths
from shfcas.feedback.web.server import Page, serve
from shfcas.feedback.web.sessions import FILE, PER_PERSON, SECONDS, Sessions
from tests.support.page_client import Client, make_items, make_run, signed_in

SETTINGS = HumanConfig(port=0, repeat_share=0.0)
TOKENS = {"ada": "one", "ben": "two"}


def same_browser(page: Page, client: Client) -> Client:
    other = Client(page.address)
    other.cookies, other.csrf = dict(client.cookies), client.csrf
    return other


def test_a_sign_out_ends_the_session_on_the_server(page: Page) -> None:
    phone, laptop = signed_in(page), signed_in(page)
    thief = same_browser(page, phone)
    assert thief.get("/api/me").status == 200
    assert phone.post("/api/sign-out", {}).status == 200
    assert thief.get("/api/me").status == thief.post("/api/undo", {}).status == 401
    assert laptop.get("/api/me").status == 200


def test_browsers_are_listed_and_each_can_be_ended(page: Page) -> None:
    phone, laptop, ben = signed_in(page), signed_in(page), signed_in(page, "ben")
    listed = laptop.get("/api/sessions").json()["sessions"]
    assert [each["here"] for each in listed] == [True, False]
    assert set(listed[0]) == {"id", "device", "begin", "used", "here"}
    assert ben.post("/api/sessions/end", {"session": listed[1]["id"]}).status == 200
    assert phone.get("/api/me").status == 200  # only one's own
    assert laptop.post("/api/sessions/end", {"session": listed[1]["id"]}).status == 200
    assert phone.get("/api/me").status == 401
    assert [each["here"] for each in laptop.get("/api/sessions").json()["sessions"]] == [True]


def test_sessions_are_private_and_survive_a_restart(folder: Path) -> None:
    with serve(folder, SETTINGS) as page:
        stays, goes = signed_in(page), signed_in(page)
        goes.post("/api/sign-out", {})
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert next(iter(stays.cookies.values())) not in (folder / FILE).read_text()
    with serve(folder, SETTINGS) as page:
        assert same_browser(page, stays).get("/api/me").status == 200
        assert same_browser(page, goes).get("/api/me").status == 401
        lines = (folder / ANNOTATORS).read_text().splitlines()
        (folder / ANNOTATORS).write_text("\n".join(line for line in lines if not line.startswith("ada ")) + "\n")
        assert same_browser(page, stays).get("/api/me").status == 401  # a removed line ends them, too


def test_sessions_end_with_their_time_their_token_and_their_number(tmp_path: Path) -> None:
    now = 1000.0
    sessions = Sessions(tmp_path, clock=lambda: now)
    cookies = [sessions.begin("ada", "one", "Mozilla/5.0 (iPhone) Safari/1") for _ in range(PER_PERSON + 1)]
    found = [sessions.find(cookie, TOKENS) for cookie in cookies]
    assert [session is None for session in found] == [True] + [False] * PER_PERSON
    assert {session.device for session in found if session} == {"Safari on iPhone"}
    assert sessions.find(cookies[1], TOKENS | {"ada": "new"}) is None and sessions.find("", TOKENS) is None
    assert Sessions(tmp_path, clock=lambda: now).find(cookies[1], TOKENS)
    now += SECONDS
    assert sessions.find(cookies[1], TOKENS) is None and sessions.of("ada", TOKENS) == []


def test_a_damaged_file_of_sessions_is_said_and_everybody_signs_in_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text('[{"secret": 1}]')
    sessions = Sessions(tmp_path)
    assert "everybody signs in again" in caplog.text
    assert sessions.find(sessions.begin("ada", "one", ""), TOKENS)


def test_many_wrong_tokens_make_hand_chosen_ones_wait_and_nobody_else(tmp_path: Path) -> None:
    make_run(tmp_path, make_items(2))
    with (tmp_path / ANNOTATORS).open("a") as file:
        file.write("cleo correct-horse-battery\n")
    with serve(tmp_path, SETTINGS) as page:
        cleo = Client(page.address)
        assert cleo.sign_in("correct-horse-battery").status == 200
        for k in range(60):
            Client(page.address, source=f"127.0.5.{1 + k // 10}").sign_in(f"correct-horse-wrong-{k}")
        late = Client(page.address)
        reply = late.sign_in("correct-horse-battery")
        assert reply.status == 429 and "from everywhere" in reply.json()["error"]
        assert cleo.get("/api/me").status == 200  # who is signed in stays so
        assert signed_in(page, "ada").get("/api/me").status == 200  # a long random token needs no limit


def test_the_limit_of_all_addresses_ends_in_time() -> None:
    now = 0.0
    failures = FailedSignIns(seconds=60, clock=lambda: now, most_in_all=2)
    failures.failed("a")
    failures.check_all()
    now = 50.0
    failures.failed("b")
    with pytest.raises(Refused, match="wait 10 s"):
        failures.check_all()
    now = 61.0
    failures.check_all()


def test_refusals_name_no_folder_of_the_server(folder: Path, page: Page) -> None:
    client = signed_in(page)
    task = client.next()
    (folder / "feedback.sqlite").rename(folder / "elsewhere")
    reply = client.judge(task)
    assert reply.status == 503 and "feedback.sqlite or its -wal or -shm was moved" in reply.json()["error"]
    assert str(folder) not in reply.content.decode() and "/" not in reply.json()["error"]
    assert client.get("/api/me", Host="evil.example").status == 421


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("/a/b c/run/feedback.sqlite: locked", "feedback.sqlite: locked"),
        ("see '/etc/other/file.md' and ../up/x", "see 'file.md' and x"),
        ("expected 3/4 of and/or, got 1", "expected 3/4 of and/or, got 1"),
    ],
)
def test_messages_without_paths(message: str, shown: str) -> None:
    assert without_paths(message, Path("/a/b c/run")) == shown
