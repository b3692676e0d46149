"""Assignment of comparisons to annotators: `overlap` annotators per comparison, and repeats for consistency."""

import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from shfcas.feedback.annotation.config import HumanConfig
from shfcas.feedback.annotation.schema import KNOWN, SIDES, Item
from shfcas.feedback.annotation.store import Store
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

REPEAT_AFTER = 10  # answers between an item and its repeat

# Items open for this annotator: not flagged, answers missing, nothing from this annotator yet, and not leased to as
# many others as answers are missing. A lease of a repeat does not count: a repeat adds no answer.
_FRESH = """
SELECT s.position, s.item FROM standing AS s
WHERE s.queue = :queue AND s.flagged = 0 AND s.people = :people AND s.leading <= :leading
    AND NOT EXISTS (
        SELECT 1 FROM marks AS m
        WHERE m.annotator = :annotator AND m.item = s.item AND m.votes + m.skips + m.flags > 0
    )
    AND (
        SELECT count(*) FROM leases AS l WHERE l.item = s.item AND l.annotator <> :annotator AND l.repeat = 0
    ) < :missing
"""
# Questions with known answers go to every annotator.
_KNOWN = """
SELECT s.item FROM standing AS s
WHERE s.queue = :queue AND s.flagged = 0 AND NOT EXISTS (
    SELECT 1 FROM marks AS m
    WHERE m.annotator = :annotator AND m.item = s.item AND m.votes + m.skips + m.flags > 0
)
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
    """Item assigned to one annotator.

    Attributes:
        item: the comparison.
        left: the answer on the left: `first` or `second`.
        repeat: True if the annotator has answered the item before.
        lease_expires: end of the lease, UTC, ISO 8601; until then the item is reserved for this annotator.
    """

    item: Item
    left: str
    repeat: bool
    lease_expires: str


@dataclass(frozen=True)
class Progress:
    """Progress of a queue.

    Attributes:
        total: number of items.
        settled: items that need no further answer: enough annotators answered and agree, or one flagged it.
        answers: answers that count towards `wanted`; repeats and answers beyond those wanted do not.
        wanted: answers that settle every item: overlap times total, and one more for each item with a disagreement.
        mine: items that the annotator answered; 0 without an annotator.
        mine_left: items that the annotator may still be asked; 0 without an annotator.
    """

    total: int
    settled: int
    answers: int
    wanted: int
    mine: int
    mine_left: int


def side(seed: int, annotator: str, item_id: str, repeat: bool = False) -> str:
    """Returns the answer on the left for this annotator, `first` or `second`; a repeat swaps the sides."""
    return SIDES[derive_seed(seed, "side", annotator, item_id, bits=1) ^ repeat]


class Assignment:
    """Assignment of a queue's items. Several threads and processes may use the same queue at once.

    Args:
        store: holds the queue and the judgements.
        queue: the queue's name.
        settings: `overlap`, `max_overlap`, `repeat_share`, `lease_minutes`.
        clock: seconds since 1970.

    Raises:
        UserError: the store has no such queue.
    """

    def __init__(self, store: Store, queue: str, settings: HumanConfig, clock: Callable[[], float] = time.time) -> None:
        self.store, self.queue, self.settings, self.clock = store, queue, settings, clock
        self._seed = store.seed(queue)
        self._queue = store.rows("SELECT number FROM queues WHERE name = ?", (queue,))[0][0]

    def next(self, annotator: str, held: Collection[str] = ()) -> Task | None:
        """Leases the next item to an annotator and returns it; None if there is nothing for them now.

        Items come in the order of the queue. At most `overlap` annotators get an item: those who answered it plus
        those who hold a lease. Where they disagree, one more gets it, up to `max_overlap`. A skip is no answer, so the
        item goes to someone else. A flag settles the item.

        An annotator sees an item again only as a repeat. The queue's seed draws a share of their answers for repeats.
        Each is repeated once, at least ten answers later, or when nothing else is left.

        Args:
            annotator: the annotator's name.
            held: ids of items that the annotator has open already; their leases are renewed.
        """
        with self.store.transaction(durable=False) as db:
            now = self.clock()
            db.execute("DELETE FROM leases WHERE expires <= ?", (now,))
            latest = now + 60 * self.settings.lease_minutes  # a clock that was set back makes no lease longer
            db.execute("UPDATE leases SET expires = ? WHERE expires > ?", (latest, latest))
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
        """Leases an item to an annotator who returns to it, as after an undo, even if others hold a lease.

        Raises:
            UserError: the queue has no such item.
        """
        with self.store.transaction(durable=False) as db:
            number = self._number(db, item_id)
            if number is None:
                raise UserError(f"queue {self.queue!r} has no item {item_id!r}; reload the page")
            return self._lease(db, annotator, number, self._answered(db, annotator, number), self.clock())

    def release(self, annotator: str) -> None:
        """Ends all leases of an annotator, so that others get the items at once."""
        with self.store.transaction(durable=False) as db:
            db.execute(
                "DELETE FROM leases WHERE annotator = ? AND item IN (SELECT item FROM standing WHERE queue = ?)",
                (annotator, self._queue),
            )

    def progress(self, annotator: str | None = None) -> Progress:
        """Counts the progress of the queue, and of this annotator in it."""
        missing, overlap = self.settings.missing, self.settings.overlap
        most = max(overlap, self.settings.max_overlap or 0)
        groups = self.store.rows(
            "SELECT people, leading, flagged, count(*) FROM standing WHERE queue = ? GROUP BY flagged, people, leading",
            (self._queue,),
        )
        total = sum(items for *_, items in groups)
        settled = sum(items for people, lead, flagged, items in groups if flagged or not missing(people, lead))
        mine = mine_left = 0
        if annotator is not None:
            mine, seen_and_open = self.store.rows(
                "SELECT count(*) FILTER (WHERE m.votes > 0), count(*) FILTER (WHERE s.flagged = 0 "
                "AND (s.people < ? OR (s.people < ? AND 2 * s.leading <= s.people)) "
                "AND m.votes + m.skips + m.flags > 0) "
                "FROM marks AS m JOIN standing AS s ON s.item = m.item "
                "WHERE m.annotator = ? AND s.queue = ?",
                (overlap, most, annotator, self._queue),
            )[0]
            mine_left = total - settled - seen_and_open
        return Progress(
            total=total,
            settled=settled,
            answers=sum(items * min(people, most) for people, *_, items in groups),
            wanted=sum(
                items * (min(people, most) + (0 if flagged and people >= overlap else missing(people, lead)))
                for people, lead, flagged, items in groups
            ),
            mine=mine,
            mine_left=mine_left,
        )

    def _number(self, db: sqlite3.Connection, item_id: str) -> int | None:
        row = db.execute(
            "SELECT s.item FROM standing AS s JOIN items AS i ON i.number = s.item WHERE i.id = ? AND s.queue = ?",
            (item_id, self._queue),
        ).fetchone()
        return row[0] if row else None

    def _answered(self, db: sqlite3.Connection, annotator: str, number: int) -> bool:
        row = db.execute("SELECT votes FROM marks WHERE annotator = ? AND item = ?", (annotator, number)).fetchone()
        return bool(row and row[0])

    def _due_repeat(self, db: sqlite3.Connection, annotator: str, taken: str, answers_between: int) -> int | None:
        """Returns the oldest repeat that is at least `answers_between` answers of this annotator old."""
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
        """Returns the first item that this annotator has not seen and that still needs an answer."""
        values = {"queue": self._queue, "annotator": annotator}
        if self.queue == KNOWN:
            row = db.execute(_KNOWN + f"AND s.item NOT IN ({taken}) {among} ORDER BY s.position LIMIT 1", values)
            return next((item for (item,) in row), None)
        query = _FRESH + f"AND s.item NOT IN ({taken}) {among} ORDER BY s.position LIMIT 1"
        settings, rows = self.settings, []
        # One search per number of answers so far: the index has the items of each number in order.
        for people in range(max(settings.overlap, settings.max_overlap or 0)):
            leading = people if people < settings.overlap else people // 2
            missing = settings.missing(people, leading)
            rows.append(
                db.execute(query, values | {"people": people, "leading": leading, "missing": missing}).fetchone()
            )
        first = min((row for row in rows if row), default=None)
        return first[1] if first else None

    def _renew(self, db: sqlite3.Connection, annotator: str, number: int, now: float) -> None:
        """Prolongs a lease; an expired one is renewed unless the item has gone to others."""
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
