"""What the page asks for, without HTTP: comparisons in the order of left and right, answers back into the log."""

import math
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from shfcas.feedback.annotation.agreement import report
from shfcas.feedback.annotation.assignment import Assignment, Task
from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import SIDES, STRENGTHS, Item, Judgement
from shfcas.feedback.annotation.store import Store
from shfcas.feedback.web.security import Refused
from shfcas.utils.seeds import derive_seed

MOST_CHARACTERS = 10_000
MOST_HELD = 100
LONGEST_SECONDS = 7 * 24 * 3600.0
NUMBERS_SECONDS = 2.0  # how old the dashboard's numbers may be: every reader asks for them again and again
_CHOICES = ("left", "right", "tie", "both_bad", "skip", "flag")
_ID = re.compile(r"[A-Za-z0-9-]{8,64}")


class Desk:
    """Hands out the comparisons of a run's newest queue and takes the answers.

    Args:
        store: of the run; a queue that is added later is found.
        settings: how people are asked.
        queue: serve this one instead of the newest.
    """

    def __init__(self, store: Store, settings: HumanConfig, queue: str | None = None) -> None:
        self._store, self._settings, self._queue = store, settings, queue
        self._lock = threading.Lock()
        self._report_lock = threading.Lock()
        self._assignments: dict[str, Assignment] = {}
        self._numbers: tuple[str, float, dict[str, Any]] = ("", -math.inf, {})

    def queue(self) -> str | None:
        """The queue that is asked now, if there is any yet."""
        return self._queue or next(reversed(self._store.queues()), None)

    def next(self, name: str, held: Sequence[str]) -> dict[str, Any]:
        """The next comparison for a person, none where there is nothing to ask.

        Args:
            name: of the person.
            held: ids of the items that the person's browser has open already.
        """
        if len(held) > MOST_HELD:
            raise Refused(400, f"held: more than {MOST_HELD} items")
        assignment = self._assignment()
        task = assignment.next(name, held) if assignment else None
        return {"task": self._shown(name, task), "progress": self._progress(name), "queue": self.queue()}

    def judge(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Writes an answer; it is on the disk when this returns.

        Args:
            name: of the person.
            body: id, item, shown, choice and, if they are there, strength, comment, seconds, page_version.

        Returns:
            saved, new, why the item was asked, progress.
        """
        item = self._store.item(_text(body, "item"))
        left, repeat = self._sides(name, item, _text(body, "shown"))
        right = SIDES[1 - SIDES.index(left)]
        choice = _one_of(body, "choice", _CHOICES)
        strength = None if body.get("strength") is None else _one_of(body, "strength", STRENGTHS)
        if strength and choice not in ("left", "right"):
            raise Refused(400, "strength: only a side can be slightly or clearly better")
        judgement = Judgement(
            id=_id(body, "id"),
            item=item.id,
            annotator=name,
            choice={"left": left, "right": right}.get(choice, choice),
            left=left,
            strength=strength,
            comment=_comment(body),
            seconds=_seconds(body),
            repeat=repeat,
            page_version=_page_version(body),
        )
        new = self._store.record(judgement)
        return {"saved": True, "new": new, "why": _why(item, left), "progress": self._progress(name)}

    def undo(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Takes an answer back and hands the same comparison out again.

        Args:
            name: of the person.
            body: id of the undo, and `undoes`, the id of the answer.
        """
        undone = self._store.judgement(_id(body, "undoes"))
        if undone is None or undone.annotator != name:
            raise Refused(400, "undoes: no such answer of yours")
        undo = Judgement(
            id=_id(body, "id"),
            item=undone.item,
            annotator=name,
            choice="undo",
            left=undone.left,
            undoes=undone.id,
            page_version=_page_version(body),
        )
        self._store.record(undo)
        assignment = self._assignment(self._store.item(undone.item).queue)
        task = assignment.task(name, undone.item) if assignment else None
        return {"saved": True, "task": self._shown(name, task), "progress": self._progress(name)}

    def leave(self, name: str) -> None:
        """What the person has open goes to others."""
        assignment = self._assignment()
        if assignment:
            assignment.release(name)

    def dashboard(self, name: str) -> dict[str, Any]:
        """How far everybody is and how well they agree."""
        queue = self.queue()
        return {"report": self._report(queue) if queue else None, "progress": self._progress(name), "queue": queue}

    def _report(self, queue: str) -> dict[str, Any]:
        # One at a time, for it reads the whole log; nobody who answers waits for it.
        with self._report_lock:
            known, made, numbers = self._numbers
            if known != queue or time.monotonic() > made + NUMBERS_SECONDS:
                numbers = report(self._store.item_ids(queue), self._store.judgements(queue), self._settings)
                self._numbers = (queue, time.monotonic(), numbers)
            return numbers

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
        """A task as the page gets it: nothing in it tells which answer is which."""
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
        """Says which answer stood on which side, to nobody but us, and also after a restart."""
        return f"{derive_seed(self._store.seed(item.queue), 'shown', name, item.id, left, repeat, bits=62):016x}"

    def _sides(self, name: str, item: Item, mark: str) -> tuple[str, bool]:
        for left in SIDES:
            for repeat in (False, True):
                if mark == self._mark(name, item, left, repeat):
                    return left, repeat
        raise Refused(400, "shown: this comparison was not shown to you like that; load the page again")


def _why(item: Item, left: str) -> dict[str, Any]:
    """What the item was chosen by, as the person saw it."""
    sides = SIDES if left == "first" else SIDES[::-1]
    return {
        name: dict(zip(("left", "right"), (value[SIDES.index(side)] for side in sides), strict=True))
        if isinstance(value, list)
        else value
        for name, value in item.why.items()
    }


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise Refused(400, f"{name}: expected a text of 1 to 64 characters")
    return value


def _id(body: dict[str, Any], name: str) -> str:
    if not _ID.fullmatch(_text(body, name)):
        raise Refused(400, f"{name}: expected a UUID")
    return str(body[name])


def _one_of(body: dict[str, Any], name: str, known: Sequence[str]) -> str:
    if _text(body, name) not in known:
        raise Refused(400, f"{name}: expected one of {', '.join(known)}")
    return str(body[name])


def _comment(body: dict[str, Any]) -> str:
    comment = body.get("comment") or ""
    if not isinstance(comment, str):
        raise Refused(400, "comment: expected a text")
    if len(comment) > MOST_CHARACTERS:
        raise Refused(413, f"comment: more than {MOST_CHARACTERS:,} characters")
    return comment


def _seconds(body: dict[str, Any]) -> float | None:
    seconds = body.get("seconds")
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_SECONDS:
        raise Refused(400, "seconds: expected a number from 0 to a week")
    return float(seconds)


def _page_version(body: dict[str, Any]) -> str:
    return _text(body, "page_version") if body.get("page_version") else ""
