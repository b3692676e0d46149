"""Histories of concurrent annotators: what happened is recorded, and checked against the log."""

import random
import threading
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from shfcas.feedback.annotation.aggregation import effective, votes
from shfcas.feedback.annotation.assignment import Assignment
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import ANSWERED
from shfcas.feedback.annotation.store import Store
from shfcas.utils.errors import UserError
from tests.support.queues import judged, make_queue

PEOPLE = 8


class History:
    """What one annotator did: acknowledged answers and undos, and refused second undos."""

    def __init__(self, store: Store, settings: HumanConfig, name: str, steps: int) -> None:
        self.store, self.name, self.steps = store, name, steps
        self.assignment = Assignment(store, "round-1", settings)
        self.answers: dict[str, str] = {}  # answer: item
        self.undos: dict[str, str] = {}  # answer: undo
        self.refused = 0
        self.errors: list[BaseException] = []

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.errors.append(error)
            raise

    def _run(self) -> None:
        rng = random.Random(self.name)
        for step in range(self.steps):
            if self.answers and rng.random() < 0.25:
                undone = rng.choice(list(self.answers))
                undo = judged(self.answers[undone], self.name, "undo", id=f"{self.name}-{step}", undoes=undone)
                try:
                    assert self.store.record(undo)
                    assert not self.store.record(undo)  # sent again
                    assert undone not in self.undos
                    self.undos[undone] = undo.id
                except UserError:
                    assert undone in self.undos
                    self.refused += 1
                continue
            task = self.assignment.next(self.name)
            if task is None:
                continue
            answer = judged(task.item, self.name, rng.choice(ANSWERED), id=f"{self.name}-{step}")
            assert self.store.record(answer)
            self.answers[answer.id] = task.item.id


def check(path: Path, settings: HumanConfig, operations: int) -> None:
    with Store(path) as store:
        store.add_queue(make_queue(operations // 6), seed=1)
        histories = [History(store, settings, f"person {k}", operations // PEOPLE) for k in range(PEOPLE)]
        threads = [threading.Thread(target=history.run) for history in histories]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [error for history in histories for error in history.errors] == []
        log, marks = (
            store.judgements(),
            store.rows("SELECT i.id, people, leading FROM standing JOIN items AS i ON i.number = item"),
        )
    acknowledged = [id for history in histories for id in (*history.answers, *history.undos.values())]
    assert Counter(j.id for j in log) == Counter(acknowledged)  # nothing lost, nothing twice
    assert len(log) > operations / 3 and sum(history.refused for history in histories) > 0
    undone = [j.undoes for j in log if j.choice == "undo"]
    assert len(undone) == len(set(undone))
    # At no moment had more annotators answered an item than it may have.
    people: dict[str, set[str]] = defaultdict(set)
    for j in log:
        (people[j.item].discard if j.choice == "undo" else people[j.item].add)(j.annotator)
        assert len(people[j.item]) <= max(settings.overlap, settings.max_overlap or 0)
    cast = votes(effective(log))
    for id, count, leading in marks:  # the counts of the page are those of the log
        given = Counter(j.choice for j in cast.get(id, {}).values())
        assert (count, leading) == (sum(given.values()), max(given.values(), default=0))


@pytest.mark.parametrize("most", [None, 4])
def test_no_update_is_lost_undos_happen_once_and_the_overlap_holds(tmp_path: Path, most: int | None) -> None:
    check(tmp_path / "a.sqlite", HumanConfig(overlap=2, max_overlap=most, repeat_share=0.0), 400)


@pytest.mark.system
def test_the_same_over_thousands_of_operations(tmp_path: Path) -> None:
    check(tmp_path / "a.sqlite", HumanConfig(overlap=2, max_overlap=4, repeat_share=0.0), 6000)
