"""A round that people answer: it waits, goes on by itself, and survives being stopped."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from shfcas.data.candidates import CandidateTable
from shfcas.data.preferences import Preference
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import Judgement, make_items
from shfcas.feedback.annotation.store import STORE, Store
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.web.annotators import Annotators, add_annotators
from shfcas.feedback.web.server import running, serve
from shfcas.selection import Comparison
from shfcas.utils.errors import UserError
from tests.support.page_client import Client, answer_all
from tests.support.processes import PROCESSES

SETTINGS = HumanConfig(port=0, repeat_share=0.0)
QUEUE = [Comparison("a", 2, 0), Comparison("b", 0, 1), Comparison("a", 1, 0)]
TABLE = CandidateTable.from_rows(
    [
        {"prompt_id": "a", "prompt": "how?", "completions": ["a0", "a1", "a2"]},
        {"prompt_id": "b", "prompt": "what?", "completions": ["b0", "b1"]},
    ]
)


def source(folder: Path, finish: bool = False, settings: HumanConfig = SETTINGS) -> HumanFeedback:
    return HumanFeedback(folder, "round-1", settings=settings, seed=3, finish=finish, poll=0.01)


def add_queue(folder: Path) -> None:
    """What a run that was stopped while it waited leaves behind."""
    with Store(folder / STORE) as store:
        store.add_queue(make_items(QUEUE, TABLE, "round-1", 1), seed=3)


def answer(folder: Path, choices: dict[int, str], annotator: str = "ada") -> None:
    """Answers comparisons by their place in the queue."""
    with Store(folder / STORE) as store:
        for item in store.items("round-1"):
            if item.position in choices:
                choice, _, strength = choices[item.position].partition(" ")
                store.record(Judgement(str(uuid4()), item.id, annotator, choice, strength=strength or None))


def start(feedback: HumanFeedback) -> tuple[threading.Thread, list[Preference]]:
    """A round that waits in another thread, and what it came to."""
    made: list[Preference] = []
    thread = threading.Thread(target=lambda: made.extend(feedback(QUEUE, TABLE, 1)), daemon=True)
    thread.start()
    return thread, made


def ended(thread: threading.Thread) -> bool:
    thread.join(timeout=100)
    return not thread.is_alive()


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[threading.Thread, list[Preference]]]:
    """A round that waits for its answers in another thread, and what it came to."""
    thread, made = start(source(tmp_path))
    until(lambda: (tmp_path / STORE).exists() and has_queue(tmp_path))
    yield thread, made
    assert ended(thread)


def has_queue(folder: Path) -> bool:
    with Store(folder / STORE) as store:
        return bool(store.queues())


def until(condition, seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_goes_on_when_the_last_comparison_is_answered(
    waiting: tuple[threading.Thread, list[Preference]], tmp_path: Path
) -> None:
    thread, made = waiting
    answer(tmp_path, {0: "first clearly", 1: "tie"})
    time.sleep(0.1)
    assert thread.is_alive()  # one is open
    answer(tmp_path, {2: "second"})
    thread.join(timeout=100)
    human = {"source": "human", "annotator": "ada", "round": 1, "prompt": TABLE.rows()[0]["prompt"], "prompt_id": "a"}
    assert made == [
        Preference(chosen="a2", rejected="a0", chosen_index=2, rejected_index=0, margin=1.0, **human),
        Preference(chosen="a0", rejected="a1", chosen_index=0, rejected_index=1, **human),
    ]


def test_answers_that_are_there_already_need_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_queue(tmp_path)
    answer(tmp_path, {0: "first", 1: "both_bad", 2: "flag"})
    monkeypatch.setitem(sys.modules, "shfcas.feedback.web.server", None)  # importing it fails
    assert [p.chosen for p in source(tmp_path)(QUEUE, TABLE, 1)] == ["a2"]


def test_it_makes_do_with_the_answers_there_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_queue(tmp_path)
    assert source(tmp_path, finish=True)(QUEUE, TABLE, 1) == []
    answer(tmp_path, {1: "second slightly"})
    (preference,) = source(tmp_path, finish=True)(QUEUE, TABLE, 1)
    assert (preference.chosen, preference.margin) == ("b1", 0.5)
    assert "continuing with 1 of 3 comparisons settled" in caplog.text


def test_a_queue_that_is_selected_again_asks_only_new_comparisons(tmp_path: Path) -> None:
    add_queue(tmp_path)
    answer(tmp_path, {0: "first", 1: "second", 2: "first"})
    settings = HumanConfig(port=0, repeat_share=0.0)
    again = HumanFeedback(tmp_path, "round-1", settings=settings, seed=4, poll=0.01)
    made: list[Preference] = []
    queue = [Comparison("a", 1, 2), Comparison("a", 0, 2)]  # one new, one with its answers the other way round
    thread = threading.Thread(target=lambda: made.extend(again(queue, TABLE, 1)), daemon=True)
    thread.start()
    until(lambda: running(tmp_path) is not None)
    client = Client(running(tmp_path))
    client.sign_in(Annotators(tmp_path).tokens()["annotator"])
    assert answer_all(client, lambda task: "left" if task["left"]["text"] == "a1" else "right") == 1
    assert ended(thread)
    chosen = [(p.chosen, p.rejected, p.chosen_index, p.rejected_index) for p in made]
    assert chosen == [("a1", "a2", 1, 2), ("a2", "a0", 2, 0)]


def wait_for_answers(folder: Path, output: Path) -> None:
    """What the process of a run does."""
    output.write_text(str([p.chosen for p in source(folder)(QUEUE, TABLE, 1)]))


@pytest.mark.system
def test_a_run_that_is_killed_while_it_waits_continues_with_the_answers(tmp_path: Path) -> None:
    first, second = (
        PROCESSES.Process(target=wait_for_answers, args=(tmp_path, tmp_path / name)) for name in ("first", "second")
    )
    first.start()
    until(lambda: (tmp_path / STORE).exists() and has_queue(tmp_path))
    answer(tmp_path, {0: "second"})
    first.kill()
    first.join()
    assert not (tmp_path / "first").exists()
    second.start()
    answer(tmp_path, {1: "first", 2: "tie"})
    second.join()
    assert second.exitcode == 0 and (tmp_path / "second").read_text() == "['a0', 'b0']"


def test_while_another_process_serves_the_page_it_only_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_queue(tmp_path)
    caplog.set_level("INFO")
    with serve(tmp_path, SETTINGS) as page:
        thread = threading.Thread(target=source(tmp_path), args=(QUEUE, TABLE, 1), daemon=True)
        thread.start()
        until(lambda: "waiting for answers at" in caplog.text)
        assert re.search(r"waiting for answers at (\S+)", caplog.text).group(1) == page.address
        answer(tmp_path, {0: "first", 1: "first", 2: "first"})
        thread.join(timeout=100)
        assert not thread.is_alive()


def test_a_new_queue_is_waited_for_whatever_was_said_of_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thread, made = start(source(tmp_path, finish=True))
    until(lambda: "round-1 has 3 new comparisons without answers" in caplog.text)
    answer(tmp_path, {0: "first", 1: "tie"})
    time.sleep(0.1)
    assert thread.is_alive()
    answer(tmp_path, {2: "tie"})
    assert ended(thread) and [p.chosen for p in made] == ["a2"]


def test_no_comparisons_are_no_queue(tmp_path: Path) -> None:
    assert source(tmp_path)([], TABLE, 1) == []


def test_it_serves_its_own_queue_where_a_newer_one_is_there(tmp_path: Path) -> None:
    add_queue(tmp_path)
    with Store(tmp_path / STORE) as store:
        store.add_queue(make_items(QUEUE, TABLE, "round-2", 2), seed=3)
    thread, made = start(source(tmp_path))
    until(lambda: running(tmp_path) is not None)
    client = Client(running(tmp_path))
    client.sign_in(Annotators(tmp_path).tokens()["annotator"])
    assert answer_all(client) == 3
    assert ended(thread) and len(made) == 3


def test_it_says_that_another_process_asks_another_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_queue(tmp_path)
    with Store(tmp_path / STORE) as store:
        store.add_queue(make_items(QUEUE, TABLE, "round-2", 2), seed=3)
    with serve(tmp_path, SETTINGS):
        thread, _ = start(source(tmp_path))
        until(lambda: f"shfcas annotate {tmp_path} --queue round-1 serves it" in caplog.text)
        answer(tmp_path, {0: "tie", 1: "tie", 2: "tie"})
        assert ended(thread)


def test_when_the_other_process_ends_it_serves_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_queue(tmp_path)
    caplog.set_level("INFO")
    with serve(tmp_path, SETTINGS) as page:
        thread, _ = start(source(tmp_path))
        until(lambda: "waiting for answers at" in caplog.text)
    until(lambda: running(tmp_path) is not None)
    assert page.links["annotator"].partition("#")[2] in caplog.text  # the same token at another port
    answer(tmp_path, {0: "tie", 1: "tie", 2: "tie"})
    assert ended(thread) and running(tmp_path) is None


def test_the_last_answer_can_be_taken_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    feedback = source(tmp_path)
    feedback.poll = 0.3  # three seconds to take it back
    thread, made = start(feedback)
    until(lambda: (tmp_path / STORE).exists() and has_queue(tmp_path))
    answer(tmp_path, {0: "first", 1: "tie", 2: "tie"})
    until(lambda: "all are settled; continuing in 3 s" in caplog.text)
    with Store(tmp_path / STORE) as store:
        first = store.judgements()[0]
        store.record(Judgement(str(uuid4()), first.item, "ada", "undo", undoes=first.id))
    answer(tmp_path, {0: "second"})
    assert ended(thread) and [p.chosen for p in made] == ["a0"]


def test_nobody_waits_for_the_link_that_was_made_before_anybody_was_named(tmp_path: Path) -> None:
    add_annotators(tmp_path)  # as the page does where it is served first
    add_annotators(tmp_path, ["ada", "ben"])
    thread, made = start(source(tmp_path))
    until(lambda: running(tmp_path) is not None)
    answer(tmp_path, {0: "first", 1: "tie", 2: "skip"})
    time.sleep(0.2)
    assert thread.is_alive()  # ben may know
    answer(tmp_path, {2: "skip"}, "ben")
    assert ended(thread) and len(made) == 1


def test_whoever_has_answered_by_that_link_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    add_annotators(tmp_path)
    add_annotators(tmp_path, ["ada"])
    add_queue(tmp_path)
    answer(tmp_path, {0: "first"}, "annotator")
    thread, made = start(source(tmp_path))
    answer(tmp_path, {1: "tie", 2: "skip"})
    until(lambda: "the rest waits for annotator;" in caplog.text)
    time.sleep(0.2)
    assert thread.is_alive()
    answer(tmp_path, {2: "second"}, "annotator")
    assert ended(thread) and len(made) == 2


def test_fewer_people_than_are_asked_are_told_what_that_means(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = HumanConfig(port=0, repeat_share=0.0, overlap=2)
    thread, made = start(source(tmp_path, settings=settings))
    until(
        lambda: (
            "2 annotators per comparison, and 1 can sign in; when they have answered all, the run continues"
            in caplog.text
        )
    )
    answer(tmp_path, {0: "first", 1: "first", 2: "first"}, "annotator")
    assert ended(thread) and len(made) == 3


def test_what_the_page_would_refuse_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    HumanFeedback.check(SETTINGS)
    with pytest.raises(UserError, match="set allow_public"):
        HumanFeedback.check(HumanConfig(host="0.0.0.0"))
    HumanFeedback.check(HumanConfig(host="0.0.0.0", allow_public=True))
    with pytest.raises(UserError, match="host: expected an address of this machine"):
        HumanFeedback.check(HumanConfig(host="no-such-name.invalid"))
    with pytest.raises(UserError, match=r"none\.md does not exist"):
        HumanFeedback.check(HumanConfig(guidelines="none.md"))
    monkeypatch.setattr("shfcas.feedback.human.find_spec", lambda name: None if name == "krippendorff" else name)
    with pytest.raises(UserError, match=r"krippendorff is not installed.*shfcas\[web\]"):
        HumanFeedback.check(SETTINGS)
