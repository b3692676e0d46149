"""A round that people answer: it waits, goes on by itself, and survives being stopped."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from shfcas.candidates import CandidateTable
from shfcas.errors import UserError
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.schema import Judgement
from shfcas.feedback.settings import HumanSettings
from shfcas.feedback.store import STORE, Store
from shfcas.preferences import Preference
from shfcas.selection import Comparison

SETTINGS = HumanSettings(port=0, repeat_share=0.0)
QUEUE = [Comparison("a", 2, 0), Comparison("b", 0, 1), Comparison("a", 1, 0)]
TABLE = CandidateTable.from_rows(
    [
        {"prompt_id": "a", "prompt": "how?", "completions": ["a0", "a1", "a2"]},
        {"prompt_id": "b", "prompt": "what?", "completions": ["b0", "b1"]},
    ]
)


def source(folder: Path, finish: bool = False, settings: HumanSettings = SETTINGS) -> HumanFeedback:
    return HumanFeedback(folder, "round-1", settings, seed=3, finish=finish, poll=0.01)


def answer(folder: Path, choices: dict[int, str], annotator: str = "ada") -> None:
    """Answers comparisons by their place in the queue."""
    with Store(folder / STORE) as store:
        for item in store.items("round-1"):
            if item.position in choices:
                choice, _, strength = choices[item.position].partition(" ")
                store.record(Judgement(str(uuid4()), item.id, annotator, choice, strength=strength or None))


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[threading.Thread, list[Preference]]]:
    """A round that waits for its answers in another thread, and what it came to."""
    made: list[Preference] = []
    thread = threading.Thread(target=lambda: made.extend(source(tmp_path)(QUEUE, TABLE, 1)), daemon=True)
    thread.start()
    until(lambda: (tmp_path / STORE).exists() and has_queue(tmp_path))
    yield thread, made
    thread.join(timeout=20)
    assert not thread.is_alive()


def has_queue(folder: Path) -> bool:
    with Store(folder / STORE) as store:
        return bool(store.queues())


def until(condition, seconds: float = 30) -> None:
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
    thread.join(timeout=20)
    human = {"source": "human", "annotator": "ada", "round": 1, "prompt": TABLE.rows()[0]["prompt"], "prompt_id": "a"}
    assert made == [
        Preference(chosen="a2", rejected="a0", chosen_index=2, rejected_index=0, margin=1.0, **human),
        Preference(chosen="a0", rejected="a1", chosen_index=0, rejected_index=1, **human),
    ]


def test_answers_that_are_there_already_need_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source(tmp_path, finish=True)(QUEUE, TABLE, 1)
    answer(tmp_path, {0: "first", 1: "both_bad", 2: "flag"})
    monkeypatch.setitem(sys.modules, "shfcas.feedback.web.server", None)  # importing it fails
    assert [p.chosen for p in source(tmp_path)(QUEUE, TABLE, 1)] == ["a2"]


def test_it_makes_do_with_the_answers_there_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert source(tmp_path, finish=True)(QUEUE, TABLE, 1) == []
    answer(tmp_path, {1: "second slightly"})
    (preference,) = source(tmp_path, finish=True)(QUEUE, TABLE, 1)
    assert (preference.chosen, preference.margin) == ("b1", 0.5)
    assert "going on with 1 of 3 comparisons settled" in caplog.text


def test_a_queue_of_the_same_name_with_other_comparisons_is_refused(tmp_path: Path) -> None:
    source(tmp_path, finish=True)(QUEUE, TABLE, 1)
    with pytest.raises(UserError, match="round-1"):
        source(tmp_path, finish=True)(QUEUE[:2], TABLE, 1)


def test_a_run_that_is_killed_while_it_waits_goes_on_with_the_answers(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import tests.test_human_feedback as t\n"
        "print([p.chosen for p in t.source(Path(sys.argv[1]))(t.QUEUE, t.TABLE, 1)], flush=True)"
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)

    first = start()
    until(lambda: (tmp_path / STORE).exists() and has_queue(tmp_path))
    answer(tmp_path, {0: "second"})
    first.send_signal(signal.SIGKILL)
    assert first.communicate()[0] == ""
    second = start()
    answer(tmp_path, {1: "first", 2: "tie"})
    assert second.communicate(timeout=60)[0] == "['a0', 'b0']\n"


def test_while_another_process_serves_the_page_it_only_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from shfcas.feedback.web.server import serve

    source(tmp_path, finish=True)(QUEUE, TABLE, 1)
    caplog.set_level("INFO")
    with serve(tmp_path, SETTINGS) as page:
        thread = threading.Thread(target=source(tmp_path), args=(QUEUE, TABLE, 1), daemon=True)
        thread.start()
        until(lambda: "waiting for answers at" in caplog.text)
        assert re.search(r"waiting for answers at (\S+)", caplog.text).group(1) == page.address
        answer(tmp_path, {0: "first", 1: "first", 2: "first"})
        thread.join(timeout=20)
        assert not thread.is_alive()
