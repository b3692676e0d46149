"""The page's service without HTTP: comparisons as left and right go out, answers go into the log."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from shfcas.feedback.annotation.agreement import agreement_report
from shfcas.feedback.annotation.assignment import Assignment, Task
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import SIDES, Item, Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.bodies import Answer, Undo
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

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
        self._lock = threading.Lock()
        self._report_lock = threading.Lock()
        self._assignments: dict[str, Assignment] = {}
        self._last_report: tuple[str, float, dict[str, Any]] = ("", -math.inf, {})

    def queue(self) -> str | None:
        """Returns the queue that is served now, or None before there is one."""
        return self._queue or next(reversed(self._store.queues()), None)

    def next(self, name: str, held: Sequence[str]) -> dict[str, Any]:
        """Leases the next comparison to an annotator; `task` is None if there is nothing to ask.

        Args:
            name: the annotator.
            held: ids of the items that the annotator's browser has open already.
        """
        assignment = self._assignment()
        task = assignment.next(name, held) if assignment else None
        return {"task": self._shown(name, task), "progress": self._progress(name), "queue": self.queue()}

    def judge(self, name: str, answer: Answer) -> dict[str, Any]:
        """Writes an answer; it is on the disk when this returns.

        Args:
            name: the annotator.
            answer: as the page sent it.

        Returns:
            `saved`, `new` (False if the answer was there already), `why` the item was selected, `progress`.

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
        return {"saved": True, "new": new, "why": _why(item, left), "progress": self._progress(name)}

    def undo(self, name: str, undo: Undo) -> dict[str, Any]:
        """Withdraws an answer and hands out its comparison again.

        Args:
            name: the annotator.
            undo: as the page sent it.

        Raises:
            UserError: the annotator gave no such answer.
        """
        undone = self._store.judgement(undo.undoes)
        if undone is None or undone.annotator != name:
            raise UserError("undoes: expected the id of an answer of yours; load the page again")
        judgement = Judgement(
            id=undo.id,
            item=undone.item,
            annotator=name,
            choice="undo",
            left=undone.left,
            undoes=undone.id,
            page_version=undo.page_version,
        )
        self._store.record(judgement)
        assignment = self._assignment(self._store.item(undone.item).queue)
        # An item that was answered before the queue was selected again may be asked no longer.
        task = assignment.task(name, undone.item) if assignment and self._store.is_selected(undone.item) else None
        return {"saved": True, "task": self._shown(name, task), "progress": self._progress(name)}

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
                self._last_report = (queue, time.monotonic(), report)
            return report

    def _assignment(self, queue: str | None = None) -> Assignment | None:
        queue = queue or self.queue()
        if queue is None:
            return None
        with self._lock:
            if queue not in self._assignments:
                self._assignments[queue] = Assignment(self._store, queue, self._settings)
            return self._assignments[queue]

    def _progress(self, name: str) -> dict[str, Any] | None:
        assignment = self._assignment()
        return asdict(assignment.progress(name)) if assignment else None

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
