"""Who is asked what next: each comparison goes to so many people, some come back to the same person."""

import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import SIDES, Item
from shfcas.feedback.annotation.store import Store
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

REPEAT_AFTER = 10  # answers between an item and its repeat

# Still to be answered by this person: not flagged, too few answers, nothing from this person yet, and not with so many
# others at the moment that they will be enough. Leases of repeats bring no further answer.
_FRESH = """
SELECT s.item FROM standing AS s
WHERE s.queue = :queue AND s.flagged = 0 AND s.people = :people
    AND NOT EXISTS (
        SELECT 1 FROM marks AS m
        WHERE m.annotator = :annotator AND m.item = s.item AND m.votes + m.skips + m.flags > 0
    )
    AND (
        SELECT count(*) FROM leases AS l WHERE l.item = s.item AND l.annotator <> :annotator AND l.repeat = 0
    ) < :overlap - s.people
"""
_REPEATS = """
SELECT m.item FROM marks AS m JOIN standing AS s ON s.item = m.item
WHERE m.annotator = :annotator AND m.draw < :share AND m.votes > 0 AND m.repeats = 0
    AND s.queue = :queue AND s.flagged = 0 AND m.last < :before
"""
_LATEST_ANSWERS = """
SELECT number FROM judgements AS j
WHERE annotator = ? AND choice IN ('first', 'second', 'tie', 'both_bad')
    AND NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = j.id)
ORDER BY number DESC LIMIT ?
"""


@dataclass(frozen=True)
class Task:
    """An item for one person.

    Attributes:
        item: what is asked.
        left: which answer stands on the left: `first` or `second`.
        repeat: whether the person has answered it before.
        lease_expires: until when nobody else gets it in this person's place, UTC, ISO 8601.
    """

    item: Item
    left: str
    repeat: bool
    lease_expires: str


@dataclass(frozen=True)
class Progress:
    """How far a queue is.

    Attributes:
        total: items.
        settled: items that need no further answer: enough people answered, or somebody flagged it.
        answers: answers that count towards `wanted`; repeats and answers beyond the overlap do not.
        wanted: answers that would settle every item: overlap times total.
        mine: items that the person answered; 0 without a person.
        mine_left: items that the person may still be asked; 0 without a person.
    """

    total: int
    settled: int
    answers: int
    wanted: int
    mine: int
    mine_left: int


def side(seed: int, annotator: str, item_id: str, repeat: bool = False) -> str:
    """Which answer stands on the left for this person, `first` or `second`; a repeat has the sides swapped."""
    return SIDES[derive_seed(seed, "side", annotator, item_id, bits=1) ^ repeat]


class Assignment:
    """Hands out the items of a queue. Several may do so at once, in threads and in processes.

    Args:
        store: where the queue and the judgements are.
        queue: its name.
        settings: `overlap`, `repeat_share`, `lease_minutes`.
        clock: seconds since 1970.

    Raises:
        UserError: the store has no such queue.
    """

    def __init__(self, store: Store, queue: str, settings: HumanConfig, clock: Callable[[], float] = time.time) -> None:
        self.store, self.queue, self.settings, self.clock = store, queue, settings, clock
        self._seed = store.seed(queue)
        self._queue, self._first, self._last = store.rows(
            "SELECT queue, min(number), max(number) FROM items "
            "WHERE queue = (SELECT number FROM queues WHERE name = ?)",
            (queue,),
        )[0]

    def next(self, annotator: str, held: Collection[str] = ()) -> Task | None:
        """The next item for a person, leased to them; None where there is nothing for them now.

        Items come by their position in the queue. One is handed out to at most `overlap` people: those who answered
        it, and those who have it at the moment. A skip is no answer, so another person gets the item; a flag settles
        it. A person is asked an item again only as a repeat: of a share of their answers, drawn by the queue's seed,
        once, and ten answers later at the earliest or when nothing else is left.

        Args:
            annotator: who asks.
            held: ids of items that the person has open already. They stay theirs, and another one is handed out.
        """
        with self.store.transaction(durable=False) as db:
            now = self.clock()
            db.execute("DELETE FROM leases WHERE expires <= ?", (now,))
            open_already = [self._number(db, id) for id in held]
            taken = ", ".join(str(number) for number in open_already if number is not None)
            for number in open_already:
                if number is not None:
                    self._renew(db, annotator, number, now)
            number = self._due_repeat(db, annotator, taken, REPEAT_AFTER)
            repeat = number is not None
            if number is None:
                number = self._fresh(db, annotator, taken)
            if number is None:
                number = self._due_repeat(db, annotator, taken, 0)
                repeat = True
            if number is None:
                return None
            return self._lease(db, annotator, number, repeat, now)

    def task(self, annotator: str, item_id: str) -> Task:
        """An item for a person who goes back to it, as after an undo, leased to them whoever else has it.

        Raises:
            UserError: the queue has no such item.
        """
        with self.store.transaction(durable=False) as db:
            number = self._number(db, item_id)
            if number is None:
                raise UserError(f"queue {self.queue!r} has no item {item_id!r}; reload the page")
            return self._lease(db, annotator, number, self._answered(db, annotator, number), self.clock())

    def release(self, annotator: str) -> None:
        """Gives back what a person has open, so that others get it at once."""
        with self.store.transaction(durable=False) as db:
            db.execute(
                "DELETE FROM leases WHERE annotator = ? AND item BETWEEN ? AND ?", (annotator, self._first, self._last)
            )

    def progress(self, annotator: str | None = None) -> Progress:
        """How far the queue is, and this person in it."""
        overlap = self.settings.overlap
        groups = self.store.rows(
            "SELECT people, flagged, count(*) FROM standing WHERE queue = ? GROUP BY flagged, people", (self._queue,)
        )
        total = sum(items for _, _, items in groups)
        settled = sum(items for people, flagged, items in groups if flagged or people >= overlap)
        mine = mine_left = 0
        if annotator is not None:
            mine, seen_and_open = self.store.rows(
                "SELECT count(*) FILTER (WHERE m.votes > 0), count(*) FILTER (WHERE s.flagged = 0 AND s.people < ? "
                "AND m.votes + m.skips + m.flags > 0) "
                "FROM marks AS m JOIN standing AS s ON s.item = m.item "
                "WHERE m.annotator = ? AND m.item BETWEEN ? AND ?",
                (overlap, annotator, self._first, self._last),
            )[0]
            mine_left = total - settled - seen_and_open
        return Progress(
            total=total,
            settled=settled,
            answers=sum(items * min(people, overlap) for people, _, items in groups),
            wanted=overlap * total,
            mine=mine,
            mine_left=mine_left,
        )

    def _number(self, db: sqlite3.Connection, item_id: str) -> int | None:
        row = db.execute("SELECT number FROM items WHERE id = ? AND queue = ?", (item_id, self._queue)).fetchone()
        return row[0] if row else None

    def _answered(self, db: sqlite3.Connection, annotator: str, number: int) -> bool:
        row = db.execute("SELECT votes FROM marks WHERE annotator = ? AND item = ?", (annotator, number)).fetchone()
        return bool(row and row[0])

    def _due_repeat(self, db: sqlite3.Connection, annotator: str, taken: str, answers_between: int) -> int | None:
        """The repeat that has waited longest, of those with so many answers of this person since."""
        if not self.settings.repeat_share:
            return None
        before = 2**62
        if answers_between:
            latest = db.execute(_LATEST_ANSWERS, (annotator, answers_between)).fetchall()
            if len(latest) < answers_between:
                return None
            before = latest[-1][0]
        values = {"annotator": annotator, "share": self.settings.repeat_share, "queue": self._queue, "before": before}
        row = db.execute(_REPEATS + f"AND m.item NOT IN ({taken}) ORDER BY m.last LIMIT 1", values).fetchone()
        return row[0] if row else None

    def _fresh(self, db: sqlite3.Connection, annotator: str, taken: str, among: str = "") -> int | None:
        """The first item that this person has not seen and that still needs somebody."""
        overlap = self.settings.overlap
        values = {"queue": self._queue, "annotator": annotator, "overlap": overlap}
        query = _FRESH + f"AND s.item NOT IN ({taken}) {among} ORDER BY s.item LIMIT 1"
        # one search for each number of people so far: the index has the items of each in order
        found = [db.execute(query, values | {"people": people}).fetchone() for people in range(overlap)]
        return min((row[0] for row in found if row), default=None)

    def _renew(self, db: sqlite3.Connection, annotator: str, number: int, now: float) -> None:
        """Prolongs a lease; one that ran out is taken again unless others have the item by now."""
        expires = now + 60 * self.settings.lease_minutes
        if not db.execute(
            "UPDATE leases SET expires = ? WHERE item = ? AND annotator = ?", (expires, number, annotator)
        ).rowcount and self._fresh(db, annotator, "", f"AND s.item = {number}"):
            self._write_lease(db, annotator, number, False, expires)

    def _lease(self, db: sqlite3.Connection, annotator: str, number: int, repeat: bool, now: float) -> Task:
        expires = now + 60 * self.settings.lease_minutes
        self._write_lease(db, annotator, number, repeat, expires)
        item = self.store.item(db.execute("SELECT id FROM items WHERE number = ?", (number,)).fetchone()[0])
        return Task(
            item=item,
            left=side(self._seed, annotator, item.id, repeat),
            repeat=repeat,
            lease_expires=datetime.fromtimestamp(expires, UTC).isoformat(timespec="seconds"),
        )

    def _write_lease(self, db: sqlite3.Connection, annotator: str, number: int, repeat: bool, expires: float) -> None:
        db.execute(
            "INSERT OR REPLACE INTO leases (item, annotator, repeat, expires) VALUES (?, ?, ?, ?)",
            (number, annotator, repeat, expires),
        )
