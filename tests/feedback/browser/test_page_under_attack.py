"""What protects annotators and their answers, in a real browser: sign-ins that end, backups, locks, a third opinion."""

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from shfcas.cli import main
from shfcas.feedback.annotation.store import Store
from tests.support.people import make_items, side

pytestmark = pytest.mark.system


def test_another_browser_is_signed_out_from_here(served, person):
    run = served(make_items(8))
    here, phone = person(), person()
    for each in (here, phone):
        each.begins(run.link("ada"))
    phone.has_enough()
    here.at("#sign-ins-button").click()
    rows = here.at("#sign-ins-list li")
    rows.nth(1).wait_for()
    assert ["(this browser)" in text for text in rows.all_inner_texts()] == [True, False]
    assert "Chrome on" in rows.first.inner_text()
    rows.nth(1).get_by_role("button").click()
    rows.nth(1).wait_for(state="detached")
    phone.answers("1")
    phone.at("#sign-in").wait_for()
    assert "You are signed out" in phone.text("#sign-in-error")
    phone.page.reload()
    phone.at("#sign-in").wait_for()
    here.closes("#sign-ins")
    here.answers("1")
    here.status("Saved")
    assert len(run.log()) == 1


def test_a_sign_out_ends_the_session_also_for_a_copied_cookie(served, person):
    run = served(make_items(3))
    ada, thief = person(), person()
    ada.begins(run.link("ada"))
    thief.context.add_cookies(ada.context.cookies())
    thief.page.goto(run.address)
    thief.works()
    ada.at("#sign-out").click()
    ada.at("#sign-in").wait_for()
    thief.page.reload()
    thief.at("#sign-in").wait_for()


def test_a_backup_is_made_while_the_page_is_open(served, person, tmp_path: Path, capsys):
    run = served(make_items(6))
    ada = person()
    ada.begins(run.link("ada"))
    ada.answers("1")
    ada.answers("2")
    ada.status("Saved")
    copy = tmp_path / "copy.sqlite"
    assert main(["feedback", "backup", str(run.folder), str(copy)]) == 0
    assert main(["feedback", "backup", str(run.folder), str(copy)]) == 1
    assert "exists; name another file" in capsys.readouterr().err
    ada.answers("t")
    ada.status("Saved")
    with Store(copy) as store:
        assert store.judgements() == run.log()[:2]


def test_answers_wait_while_another_process_holds_the_lock(served, person):
    run = served(make_items(8))
    ada = person()
    ada.begins(run.link("ada"))
    ada.has_enough()
    with contextlib.closing(sqlite3.connect(run.folder / "feedback.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ada.answers("1")
        ada.at("#status", has_text="Not saved: 1 answer kept here. The server says: feedback.sqlite: locked").wait_for()
        second = person()
        second.page.goto(run.address)  # pages and files do not wait
        second.at("#sign-in").wait_for()
        ada.answers("2")
        other.execute("ROLLBACK")
    ada.status("Saved")
    assert [side(j) for j in run.log()] == ["left", "right"]


def test_a_third_person_is_asked_where_two_disagree(served, person):
    run = served(make_items(4), overlap=2, max_overlap=3)
    run.tokens |= dict(line.split() for line in _third(run.folder))
    for name, keys in (("ada", "1111"), ("ben", "1212")):
        someone = person()
        someone.begins(run.link(name))
        for key in keys:
            someone.works()  # until the next comparison is there, the text is that of the last one
            # Sides differ per person: choose by the text.
            first = "first" in someone.text("#left")
            someone.answers({"1": "1" if first else "2", "2": "2" if first else "1"}[key])
        someone.is_done()
        someone.status("Saved")
    cleo = person()
    cleo.begins(run.link("cleo"))
    asked = [cleo.answers("t") for _ in range(2)]
    cleo.is_done()
    assert sorted(asked) == sorted([run.items[1].id, run.items[3].id])
    assert Counter(j.item for j in run.log()) == {item.id: 2 + (item.id in asked) for item in run.items}


def _third(folder: Path) -> list[str]:
    from shfcas.feedback.web.annotators import add_annotators

    return [f"cleo {add_annotators(folder, ['cleo'])['cleo']}"]


def test_a_change_after_looking_is_marked(served, person):
    run = served(make_items(4))
    ada = person()
    ada.begins(run.link("ada"))
    ada.answers("1")
    ada.status("Saved")
    ada.press("u")
    ada.answers("2")  # a blind change
    ada.status("Saved")
    ada.press("w")
    ada.at("#why tr").first.wait_for()
    assert "the change is marked" in ada.at("#why").inner_text()
    ada.closes("#why")
    ada.press("u")
    ada.answers("1")
    ada.status("Saved")
    assert [(j.choice == "undo", j.informed) for j in run.log()] == [
        (False, False),
        (True, False),
        (False, False),
        (True, True),
        (False, True),
    ]
