"""The page where people answer, in a real browser: what is pressed there stands in the store."""

import contextlib
import hashlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Route

from shfcas.feedback.annotation.aggregation import effective
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.web import dependencies
from shfcas.feedback.web.server import serve
from tests.support.people import Run, make_items, side

pytestmark = pytest.mark.system


def test_a_session_by_keyboard_alone(served, person, tmp_path):
    (tmp_path / "guide.md").write_text("# Be fair\n\nRead *both*.", encoding="utf-8")
    run = served(make_items(16), guidelines=str(tmp_path / "guide.md"))
    ada = person()
    ada.page.goto(run.address)
    ada.at("#sign-in").wait_for()
    ada.page.keyboard.type(run.tokens["ada"])
    ada.press("Enter")
    ada.works()
    assert "token" not in ada.page.url

    keys = {
        "1": ("left", None),
        "2": ("right", None),
        "ArrowLeft": ("left", None),
        "ArrowRight": ("right", None),
        "Shift+Digit1": ("left", "clearly"),
        "Shift+Digit2": ("right", "clearly"),
        "Shift+ArrowLeft": ("left", "clearly"),
        "Shift+ArrowRight": ("right", "clearly"),
        ",": ("left", "slightly"),
        ".": ("right", "slightly"),
        "t": ("tie", None),
        "b": ("both_bad", None),
        "s": ("skip", None),
    }
    items = [ada.answers(key) for key in keys]

    ada.press("g")
    ada.at("#guidelines", has_text="Be fair").wait_for()
    assert "Be fair\nRead both." in ada.text("#guidelines")
    ada.press("d", "g", "m")
    assert ada.at("#guidelines").is_hidden()
    assert {ada.text("#left mark"), ada.text("#right mark")} == {"first", "second"}
    ada.press("m", "d")
    assert ada.at("#left mark").count() == 0
    ada.press("?")
    assert "Undo the last answer" in ada.at("#keys").inner_text()
    ada.press("1")  # a key behind a dialog does nothing
    ada.closes("#keys")

    ada.press("f")
    ada.page.keyboard.type("12 tubs")  # keys are letters in a field
    items.append(ada.answers("Control+Enter"))
    ada.press("c")
    ada.page.keyboard.type("b is shorter")
    ada.press("Escape")
    items.append(ada.answers("2"))
    items.append(ada.answers("1"))
    ada.is_done()
    ada.status("Saved")
    assert "You have answered 14. All answers are saved." in ada.at("#done").inner_text()

    log = run.log()
    assert [judgement.item for judgement in log] == items == [item.id for item in run.items]
    assert [(side(j), j.strength) for j in log] == [*keys.values(), ("flag", None), ("right", None), ("left", None)]
    assert [j.comment for j in log if j.comment] == ["12 tubs", "b is shorter"]
    assert all(j.annotator == "ada" and j.seconds is not None and j.page_version for j in log)
    assert {j.left for j in log} == {"first", "second"}


def test_why_it_was_asked_comes_after_the_answer_and_as_it_stood(served, person):
    run = served(make_items(3))
    ada = person()
    ada.begins(run.link("ada"))
    assert not any(number in ada.page.content() for number in ("0.75", "1.25", "-2.5"))
    left = {"The first answer to question 0.": (1.25, 0.5, -8), "The second answer to question 0.": (-2.5, -1.5, -9)}
    shown = [left[ada.text("#left")], left[ada.text("#right")]]
    ada.answers("1")
    ada.status("Saved")
    ada.press("w")
    ada.at("#why tr").first.wait_for()
    rows = ada.at("#why tr").all_inner_texts()
    pairs = [tuple(f"{value:.2f}" for value in values) for values in zip(*shown, strict=True)]
    assert [tuple(row.split("\t")[1:]) for row in rows[1:]] == pairs
    assert "Kendall distance of the prompt: 0.75" in ada.at("#why").inner_text()


def test_two_people_never_get_the_same_item(served, person):
    run = served(make_items(24))
    people = {"ada": person(), "ben": person()}
    for name, each in people.items():
        each.begins(run.link(name))
    left = set(people)
    while left:
        for name in sorted(left):
            people[name].at("#work:visible, #done:visible").wait_for()
            if people[name].at("#done").is_visible():
                left.discard(name)
            else:
                people[name].answers("1" if name == "ada" else "2")
    for each in people.values():
        each.is_done()
        each.status("Saved")
    assert Counter(judgement.item for judgement in run.log()) == {item.id: 1 for item in run.items}
    assert {judgement.annotator for judgement in run.log()} == {"ada", "ben"}


def test_an_undone_item_comes_back(served, person):
    run = served(make_items(8))
    ada = person()
    ada.begins(run.link("ada"))
    ada.press("c")
    ada.page.keyboard.type("hasty")
    ada.press("Escape")
    first = ada.answers("1")
    second = ada.item()
    ada.press("u")
    assert ada.item() == first
    assert ada.at("#comment").input_value() == "hasty"
    assert ada.text("#heading") == "Comparison 1"
    ada.answers("2")
    assert ada.item() == second
    ada.answers("1")
    ada.status("Saved")

    ada.page.reload()
    ada.works()
    third = ada.item()
    ada.press("u")  # of an answer from before
    ada.another(third)
    assert ada.item() == second
    ada.answers("t")
    ada.status("Saved")
    log = run.log()
    assert [(j.item, side(j)) for j in log] == [
        (first, "left"), (first, "undo"), (first, "right"), (second, "left"), (second, "undo"), (second, "tie"),
    ]  # fmt: skip
    assert [(j.item, side(j)) for j in effective(log)] == [(first, "right"), (second, "tie")]


def test_offline_and_back(served, person):
    run = served(make_items(12))
    ada = person()
    ada.begins(run.link("ada"))
    answered = [ada.answers("1")]
    ada.status("Saved")
    ada.has_enough()
    ada.context.set_offline(True)
    ada.status("Offline")
    answered += [ada.answers("2") for _ in range(2)]
    ada.press("u")
    answered[-1] = ada.answers("t")
    answered += [ada.answers("1") for _ in range(3)]  # all that were fetched
    ada.status("Offline: 7 answers kept here")
    assert "The server cannot be reached" in ada.text("#waiting")
    assert len(run.log()) == 1

    ada.context.set_offline(False)
    ada.works()
    ada.status("Saved")
    answered += [ada.answers("1") for _ in range(6)]
    ada.is_done()
    ada.status("Saved")
    log = run.log()
    assert [j.item for j in effective(log)] == answered == [item.id for item in run.items]
    assert [side(j) for j in log[:6]] == ["left", "right", "right", "undo", "tie", "left"]
    assert len(log) == 14


def test_a_closed_tab_sends_its_answers_on_the_next_visit(served, person):
    run = served(make_items(8))
    ada = person()
    ada.begins(run.link("ada"))
    ada.has_enough()
    ada.context.set_offline(True)
    answered = [ada.answers("1"), ada.answers("b")]
    ada.page.close()
    assert run.log() == []
    ada.context.set_offline(False)
    ada.page = ada.open()
    ada.begins(run.address)
    assert ada.item() == run.items[2].id
    ada.status("Saved")
    assert [(j.item, side(j)) for j in run.log()] == list(zip(answered, ["left", "both_bad"], strict=True))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_answers_of_another_run_at_the_same_address_wait_for_theirs(person, tmp_path):
    one, other = (Run(tmp_path / name, make_items(8)) for name in ("one", "other"))
    port = free_port()
    one.address = other.address = f"http://127.0.0.1:{port}/"
    settings = HumanConfig(port=port, repeat_share=0.0)
    ada = person()
    with serve(one.folder, settings):
        ada.begins(one.link("ada"))
        ada.has_enough()
    ada.answers("2")  # what was fetched ahead; the server has gone
    ada.page.goto("about:blank")
    with serve(other.folder, settings):
        ada.begins(other.link("ada"))
        ada.answers("1")
        ada.status("Saved")
        ada.page.goto("about:blank")
    assert [side(j) for j in other.log()] == ["left"]
    assert one.log() == []
    with serve(one.folder, settings):
        ada.begins(one.address)
        ada.status("Saved")
        assert ada.text("#counts") == "1 answered, 7 left"
    assert [side(j) for j in one.log()] == ["right"]


@contextlib.contextmanager
def annotate(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`shfcas annotate`, until it is killed or the context ends."""
    command = [sys.executable, "-m", "shfcas", "annotate", str(folder), "--port", str(port), "--repeat_share", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            while "#token=" not in (line := process.stdout.readline()):
                assert line, "the server ended"
            yield process
        finally:
            process.kill()


def test_a_killed_server_loses_nothing_and_asks_nobody_to_sign_in_again(person, tmp_path):
    port = free_port()
    run = Run(tmp_path / "run", make_items(12))
    run.address = f"http://127.0.0.1:{port}/"
    ada = person()
    with annotate(run.folder, port) as server:
        ada.begins(run.link("ada"))
        answered = [ada.answers("1") for _ in range(3)]
        ada.status("Saved")
        ada.has_enough()
        server.send_signal(signal.SIGKILL)
        server.wait()
        answered += [ada.answers("2") for _ in range(2)]
        ada.status("Offline: 2 answers kept here")
    with serve(run.folder, HumanConfig(port=port, repeat_share=0.0)):
        ada.status("Saved")
        answered += [ada.answers("1") for _ in range(7)]
        ada.is_done()
        ada.status("Saved")
    assert [j.item for j in run.log()] == answered == [item.id for item in run.items]


def test_a_new_token_signs_out_and_keeps_the_answer(served, person):
    run = served(make_items(4))
    ada = person()
    ada.begins(run.link("ada"))
    ada.has_enough()
    file = run.folder / "annotators.txt"
    file.write_text(file.read_text(encoding="utf-8").replace(run.tokens["ada"], "9f3c71e05ab8d264"), encoding="utf-8")
    late: list[Route] = []
    ada.page.route("**/api/next*", lambda route: late.append(route))
    ada.press("1")
    ada.at("#sign-in").wait_for()
    assert "sign in again" in ada.text("#sign-in-error").lower()
    ada.at("#token").fill("wrong")
    ada.press("Enter")
    ada.at("#sign-in-error", has_text="did not work").wait_for()
    assert late
    for route in late:
        with ada.page.expect_response("**/api/next*") as refused:
            route.continue_()
        assert refused.value.status == 401
    ada.page.unroute("**/api/next*")
    ada.page.wait_for_timeout(200)  # what the page does about it
    assert "did not work" in ada.text("#sign-in-error")
    assert ada.at("#token").input_value() == "wrong"
    ada.at("#token").fill(f"{run.address}#token=9f3c71e05ab8d264")  # the whole link does as well
    ada.press("Enter")
    ada.works()
    ada.status("Saved")
    assert [j.item for j in run.log()] == [run.items[0].id]

    ada.at("#sign-out").click()
    ada.at("#sign-in").wait_for()
    ada.press("Tab", "Tab", "1")
    assert ada.at("#work").is_hidden()


def test_what_the_server_does_not_take_is_kept_and_said(served, person):
    run = served(make_items(4))
    ada = person()
    cookie = "shfcas_" + hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:12]
    entry = {"kind": "judgement", "body": {"id": "a0000000-0000-4000-8000-000000000000", "item": "unknown"}}
    name = json.dumps(f"shfcas/outbox/{cookie}/ada/0000000000000001")
    ada.page.add_init_script(f"localStorage.setItem({name}, {json.dumps(json.dumps(entry))})")
    ada.begins(run.link("ada"))
    ada.answers("1")
    ada.status("Saved 1 not accepted by the server.")
    assert len(run.log()) == 1


def test_what_the_server_says_is_shown_while_it_gives_nothing(served, person, monkeypatch):
    monkeypatch.setattr(dependencies, "WRITE_SECONDS", 0.05)  # until a lock is too long
    run = served(make_items(4))
    ada = person()
    with contextlib.closing(sqlite3.connect(run.folder / "feedback.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")  # another process keeps the file for itself: 503
        ada.page.goto(run.link("ada"))
        ada.at("#waiting", has_text="locked by another process").wait_for()
        assert "The page tries again by itself" in ada.text("#waiting")
        assert "No new comparisons. The server says: " in ada.text("#status")
        other.execute("ROLLBACK")
    ada.works()
    ada.status("Saved")


def test_one_tab_at_a_time(served, person):
    run = served(make_items(4))
    ada = person()
    ada.begins(run.link("ada"))
    first, item = ada.page, ada.item()
    ada.page = ada.open()
    ada.page.goto(run.address)
    ada.at("#elsewhere").wait_for()
    ada.press("1")
    ada.at("#take-over").click()
    ada.works()
    assert ada.item() == item
    ada.answers("1")
    ada.status("Saved")
    first.locator("#elsewhere").wait_for()
    first.keyboard.press("2")
    ada.has_enough()  # or an answer would still be on its way
    assert len(run.log()) == 1


@pytest.mark.parametrize("lost", ["judgements", "next"])
def test_another_annotator_in_the_same_browser_gets_none_of_it(served, person, lost):
    """Each of the two requests has to notice by itself, so the other one does not get through."""
    run = served(make_items(16))
    ada = person()
    ada.begins(run.link("ada"))
    answered = [ada.answers("1")]
    ada.status("Saved")
    ada.has_enough()
    adas, bens = ada.page, ada.open()
    adas.route(f"**/api/{lost}*", lambda route: route.abort())
    ada.page = bens
    ada.begins(run.link("ben"))

    ada.page = adas
    answered.append(ada.item())
    ada.press("2")
    ada.at("#sign-in").wait_for()
    assert ada.at("#work").is_hidden()
    adas.unroute(f"**/api/{lost}*")
    adas.evaluate("dispatchEvent(new Event('online'))")  # whatever waits is sent now
    ada.status("Signed out: 1 answer kept here")
    assert [j.annotator for j in run.log()] == ["ada"]

    ada.page = bens
    bens_item = ada.answers("t")
    ada.status("Saved")
    ada.page = adas
    ada.at("#token").fill(run.tokens["ada"])
    ada.press("Enter")
    ada.works()
    ada.status("Saved")
    assert [(j.annotator, j.item, side(j)) for j in run.log()] == [
        ("ada", answered[0], "left"), ("ben", bens_item, "tie"), ("ada", answered[1], "right"),
    ]  # fmt: skip
    ada.page = bens
    ada.press("1")
    ada.at("#sign-in").wait_for()
