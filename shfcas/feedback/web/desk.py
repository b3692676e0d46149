"""The page's service without HTTP: comparisons as left and right go out, answers go into the log."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from shfcas.feedback.annotation.agreement import agreement_report
from shfcas.feedback.annotation.assignment import Assignment, Task
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.known import known_report
from shfcas.feedback.annotation.schema import KNOWN, SIDES, Item, Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.bodies import Answer, Look, Undo
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

Result = TypeVar("Result")

REPORT_SECONDS = 2.0  # maximum age of the dashboard's numbers: every open dashboard requests them repeatedly


class Desk:
    """Desk that hands out the comparisons of a run's newest queue and takes the answers.

    Args:
        store: the run's store; queues that are added later are served too.
        settings: overlap, repeats and leases.
        queue: serve this queue instead of the newest.
    """

    def __init__(self, store: Store, settings: HumanConfig, queue: str | None = None) -> None:
        self._store, self._settings, self._queue = store, settings, queue
        self._has_known = settings.known_answers is not None
        self._lock = threading.Lock()
        self._report_lock = threading.Lock()
        self._assignments: dict[str, Assignment] = {}
        self._last_report: tuple[str, float, dict[str, Any]] = ("", -math.inf, {})

    def queue(self) -> str | None:
        """Returns the queue that is served now, or None before there is one."""
        return self._queue or next(reversed(self._store.queues()), None)

    def within(self, seconds: float, work: Callable[..., Result], *values: object) -> Result:
        """Runs something that waits at most so long for others that write."""
        with self._store.within(max(0.0, seconds)):
            return work(*values)

    def next(self, name: str, held: Sequence[str]) -> dict[str, Any]:
        """Leases the next comparison to an annotator; `task` is None if there is nothing to ask.

        Args:
            name: the annotator.
            held: ids of the items that the annotator's browser has open already.
        """
        task = self._known(name, held)
        assignment = self._assignment()
        if task is None and assignment:
            task = assignment.next(name, held)
        return {"task": self._shown(name, task), "progress": self._progress(name), "queue": self.queue()}

    def judge(self, name: str, answer: Answer) -> dict[str, Any]:
        """Writes an answer; it is on the disk when this returns.

        Args:
            name: the annotator.
            answer: as the page sent it.

        Returns:
            `saved`, `new` (False if the answer was there already), `progress`.

        Raises:
            UserError: there is no such item, or it was not shown to this annotator like that.
        """
        item = self._store.item(answer.item)
        left, repeat = self._sides(name, item, answer.shown)
        right = SIDES[1 - SIDES.index(left)]
        judgement = Judgement(
            id=answer.id,
            item=item.id,
            annotator=name,
            choice={"left": left, "right": right}.get(answer.choice, answer.choice),
            left=left,
            strength=answer.strength,
            comment=answer.comment,
            seconds=answer.seconds,
            repeat=repeat,
            page_version=answer.page_version,
        )
        new = self._store.record(judgement)
        return {"saved": True, "new": new, "progress": self._progress(name)}

    def why(self, name: str, look: Look) -> dict[str, Any]:
        """Returns the scores behind the selection of a comparison that the annotator answered, as `why`.

        The log keeps that they looked: a change of the answer is no longer blind.

        Raises:
            UserError: the annotator gave no such answer, or it was undone.
        """
        answer = self._own(name, look.answer)
        return {"why": _why(self._store.look(answer), answer.left)}

    def undo(self, name: str, undo: Undo) -> dict[str, Any]:
        """Withdraws an answer and hands out its comparison again.

        Args:
            name: the annotator.
            undo: as the page sent it.

        Raises:
            UserError: the annotator gave no such answer.
        """
        undone = self._own(name, undo.undoes)
        judgement = Judgement(
            id=undo.id,
            item=undone.item,
            annotator=name,
            choice="undo",
            left=undone.left,
            undoes=undone.id,
            page_version=undo.page_version,
        )
        assignment = self._assignment(self._store.item(undone.item).queue)
        with self._store.transaction():
            self._store.record(judgement)
            # An item that was answered before the queue was selected again may be asked no longer.
            task = assignment.task(name, undone.item) if assignment and self._store.is_selected(undone.item) else None
        return {"saved": True, "task": self._shown(name, task), "progress": self._progress(name)}

    def _own(self, name: str, id: str) -> Judgement:
        """Returns an answer of this annotator."""
        answer = self._store.judgement(id)
        if answer is None or answer.annotator != name:
            raise UserError("expected the id of an answer of yours; load the page again")
        return answer

    def leave(self, name: str) -> None:
        """Releases the comparisons that an annotator has open."""
        assignment = self._assignment()
        if assignment:
            assignment.release(name)

    def dashboard(self, name: str) -> dict[str, Any]:
        """Returns progress and agreement of all annotators."""
        queue = self.queue()
        return {"report": self._report(queue) if queue else None, "progress": self._progress(name), "queue": queue}

    def _report(self, queue: str) -> dict[str, Any]:
        # One at a time, because it reads the whole log. Answers do not wait for it.
        with self._report_lock:
            reported, moment, report = self._last_report
            if reported != queue or time.monotonic() > moment + REPORT_SECONDS:
                report = agreement_report(self._store.item_ids(queue), self._store.judgements(queue), self._settings)
                if self._has_known:
                    report["known"] = known_report(self._store.judgements(KNOWN))
                self._last_report = (queue, time.monotonic(), report)
            return report

    def _assignment(self, queue: str | None = None) -> Assignment | None:
        queue = queue or self.queue()
        if queue is None:
            return None
        with self._lock:
            if queue not in self._assignments:
                settings = replace(self._settings, repeat_share=0.0) if queue == KNOWN else self._settings
                self._assignments[queue] = Assignment(self._store, queue, settings)
            return self._assignments[queue]

    def _progress(self, name: str) -> dict[str, Any] | None:
        assignment = self._assignment()
        if assignment is None:
            return None
        progress = asdict(assignment.progress(name))
        if self._has_known:  # counted like the others, or the counts would tell which questions are such
            progress["mine"] += self._known_assignment().progress(name).mine
        return progress

    def _known(self, name: str, held: Sequence[str]) -> Task | None:
        """Returns a question with a known answer, if it is time for one."""
        if not self._has_known:
            return None
        known = self._known_assignment()
        answered = self._store.rows("SELECT count(*) FROM judgements WHERE annotator = ?", (name,))[0][0]
        share = derive_seed(self._store.seed(KNOWN), "time", name, answered + len(held), bits=53) / 2**53
        return known.next(name, held) if share < self._settings.known_share else None

    def _known_assignment(self) -> Assignment:
        assignment = self._assignment(KNOWN)
        assert assignment
        return assignment

    def _shown(self, name: str, task: Task | None) -> dict[str, Any] | None:
        """Returns a task as the page gets it: nothing in it tells which answer is which."""
        if task is None:
            return None
        texts = {"first": task.item.first_text, "second": task.item.second_text}
        return {
            "id": task.item.id,
            "prompt": task.item.prompt,
            "left": {"text": texts.pop(task.left)},
            "right": {"text": texts.popitem()[1]},
            "repeat": task.repeat,
            "shown": self._mark(name, task.item, task.left, task.repeat),
            "lease_expires": task.lease_expires,
        }

    def _mark(self, name: str, item: Item, left: str, repeat: bool) -> str:
        """Returns a mark that tells the sides to this server alone, also after a restart."""
        return f"{derive_seed(self._store.seed(item.queue), 'shown', name, item.id, left, repeat, bits=62):016x}"

    def _sides(self, name: str, item: Item, mark: str) -> tuple[str, bool]:
        for left in SIDES:
            for repeat in (False, True):
                if mark == self._mark(name, item, left, repeat):
                    return left, repeat
        raise UserError("shown: this comparison was not shown to you like that; load the page again")


def _why(item: Item, left: str) -> dict[str, Any]:
    """Returns the scores behind the selection, by the sides that the annotator saw."""
    sides = ("left", "right") if left == "first" else ("right", "left")
    return {
        name: dict(zip(sides, value, strict=True)) if isinstance(value, list) else value
        for name, value in item.why.items()
    }
