"""The store of comparisons and judgements: rows are added durably and never changed."""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.access import Database
from shfcas.feedback.annotation.checks import check_judgement, check_printable
from shfcas.feedback.annotation.database import BUSY_SECONDS, StoreError
from shfcas.feedback.annotation.schema import ANSWERED, KNOWN, Item, Judgement
from shfcas.feedback.annotation.selection import place_of, reselected, with_place
from shfcas.feedback.annotation.tables import leading
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

__all__ = ["STORE", "Store", "StoreError"]

STORE = "feedback.sqlite"  # in the run directory

_COLUMNS = "id, item, annotator, choice, left, strength, comment, seconds, repeat, undoes, page_version, time, informed"
_SELECT = f"SELECT {', '.join('i.id' if c == 'item' else f'j.{c}' for c in _COLUMNS.split(', '))} "
_FROM = "FROM judgements AS j JOIN items AS i ON i.number = j.item "
_SELECT_AGAIN = f"""
INSERT INTO standing (item, queue, position, place, people, flagged, leading) SELECT ?1, ?2, ?3, ?4,
    (SELECT count(*) FROM marks WHERE item = ?1 AND votes > 0),
    EXISTS (SELECT 1 FROM marks WHERE item = ?1 AND flags > 0),
    {leading("?1")}
"""
_LOOKED = """
SELECT 1 FROM looks AS l JOIN judgements AS j ON j.id = l.judgement WHERE j.item = ? AND j.annotator = ?
"""


class Store:
    """Judgements of a run in one SQLite file, which several threads and processes may have open at once.

    Args:
        path: the file, `feedback.sqlite` in the run directory; created if it is missing.
        busy_seconds: how long to wait for another process that is writing.
        read_only: change nothing; the file must exist.
        clock: returns the time, in UTC.

    Raises:
        StoreError: the file cannot be opened, or is not a file of judgements. Every method raises it too if the disk
            is full or another process has locked the file; acknowledged judgements are kept.
    """

    def __init__(
        self,
        path: str | Path,
        busy_seconds: float = BUSY_SECONDS,
        read_only: bool = False,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._database = Database(self.path, busy_seconds, read_only)
        self.close, self.within = self._database.close, self._database.within
        self.transaction, self.rows = self._database.transaction, self._database.rows

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add_queue(self, items: Sequence[Item], seed: int) -> int:
        """Adds a queue, or selects the items of a queue again. An empty list changes nothing.

        When a queue is selected again, an item with the texts of an earlier one is that item: it keeps its id, its
        sides (`first` and `second`) and its judgements. Only its position, its answers' positions and its scores are
        new. Earlier items that are not selected any more are not asked and do not count. Their judgements stay in
        the log and count again if the items are selected again.

        Args:
            items: the items of one queue, with unique ids and positions.
            seed: seed of sides and repeats; a queue keeps its first one.

        Returns:
            The number of items that the queue never had before.

        Raises:
            UserError: the items are of several queues, two of them are equal, or another queue has one of the ids.
        """
        if not items:
            return 0
        queue = items[0].queue
        if any(item.queue != queue for item in items):
            raise UserError(f"items: expected one queue, got {queue!r} and others; add one queue at a time")
        if any(len({getattr(i, name) for i in items}) < len(items) for name in ("id", "position")):
            raise UserError(f"queue {queue!r} asks the same comparison twice; ask each once")
        for item in items:
            check_printable(item.id, "item")
            check_printable(item.queue, "queue")
        with self.transaction() as db:
            known = db.execute("SELECT number FROM queues WHERE name = ?", (queue,)).fetchone()
            if known:
                number = known[0]
            else:
                number = db.execute("INSERT INTO queues (name, seed) VALUES (?, ?)", (queue, str(seed))).lastrowid
            rows = db.execute(
                "SELECT content, number FROM items WHERE queue = ? ORDER BY position", (number,)
            ).fetchall()
            stored = [Item(**json.loads(content)) for content, _ in rows]
            numbers = {item.id: row[1] for item, row in zip(stored, rows, strict=True)}
            judged = db.execute(
                "SELECT DISTINCT i.id FROM judgements AS j JOIN items AS i ON i.number = j.item WHERE i.queue = ?",
                (number,),
            )
            selected = reselected(sorted(items, key=lambda item: item.position), stored, {id for (id,) in judged})
            new = [item for item in selected if item.id not in numbers]
            for position, item in enumerate(new, start=len(stored)):
                if db.execute("SELECT 1 FROM items WHERE id = ?", (item.id,)).fetchone():
                    raise UserError(f"{self.path} has item {item.id!r} in another queue; make new items for {queue!r}")
                values = (item.id, number, position, _json(asdict(item)))
                numbers[item.id] = db.execute(
                    "INSERT INTO items (id, queue, position, content) VALUES (?, ?, ?, ?)", values
                ).lastrowid
            first = {item.id: item for item in (*stored, *new)}
            places = [(numbers[i.id], number, i.position, _json(place_of(i, first[i.id]))) for i in selected]
            current = db.execute(
                "SELECT item, queue, position, place FROM standing WHERE queue = ? ORDER BY position", (number,)
            ).fetchall()
            if places != current:
                db.execute("DELETE FROM standing WHERE queue = ?", (number,))
                db.executemany(_SELECT_AGAIN, places)
            return len(new)

    def queues(self) -> list[str]:
        """Returns the names of the queues, oldest first; without the questions with known answers."""
        return [name for (name,) in self.rows("SELECT name FROM queues WHERE name <> ? ORDER BY number", (KNOWN,))]

    def seed(self, queue: str) -> int:
        """Returns the seed of a queue."""
        return int(self._queue(queue)[1])

    def _queue(self, queue: str) -> tuple[int, str]:
        """Returns number and seed of a queue."""
        rows = self.rows("SELECT number, seed FROM queues WHERE name = ?", (queue,))
        if not rows:
            raise UserError(f"{self.path} has no queue {queue!r}; it has {', '.join(self.queues()) or 'none'}")
        return rows[0]

    def items(self, queue: str) -> list[Item]:
        """Returns the items of a queue, by position."""
        return self._items("WHERE s.queue = ? ORDER BY s.position", self._queue(queue)[0])

    def deselected(self, queue: str) -> list[Item]:
        """Returns the items that the queue had before it was selected again, oldest first."""
        return self._items("WHERE i.queue = ? AND s.item IS NULL ORDER BY i.position", self._queue(queue)[0])

    def item_ids(self, queue: str) -> list[str]:
        """Returns the ids of a queue's items, by position, without reading their long texts."""
        number = self._queue(queue)[0]
        query = (
            "SELECT i.id FROM standing AS s JOIN items AS i ON i.number = s.item WHERE s.queue = ? ORDER BY s.position"
        )
        return [id for (id,) in self.rows(query, (number,))]

    def item(self, id: str) -> Item:
        """Returns the item with this id, whether it is still selected or not.

        Raises:
            UserError: there is no such item.
        """
        items = self._items("WHERE i.id = ?", check_printable(id, "item"))
        if not items:
            raise UserError(f"{self.path} has no item {id!r}; reload the page, or import into the run it came from")
        return items[0]

    def is_selected(self, id: str) -> bool:
        """Checks whether an item belongs to the latest selection of its queue."""
        query = "SELECT 1 FROM standing AS s JOIN items AS i ON i.number = s.item WHERE i.id = ?"
        return bool(self.rows(query, (id,)))

    def _items(self, where: str, value: Any) -> list[Item]:
        query = "SELECT i.content, s.place FROM items AS i LEFT JOIN standing AS s ON s.item = i.number " + where
        rows = self.rows(query, (value,))
        return [with_place(Item(**json.loads(content)), json.loads(place or "{}")) for content, place in rows]

    def record(self, judgement: Judgement) -> bool:
        """Adds a judgement to the log; it is on the disk when this returns.

        Returns:
            True if it was written; False if the log has it already.

        Raises:
            UserError: the log has the id with other content, or the judgement is invalid: an unknown item or choice,
                or an undo of another annotator's answer, of an undone answer or of an undo.
        """
        return self.record_all([judgement]) == 1

    def record_all(self, judgements: Iterable[Judgement]) -> int:
        """Adds judgements in one transaction, all or none.

        Returns:
            The number of judgements that are new to the log.

        Raises:
            UserError: as for `record`; names the first judgement that cannot be added.
        """
        checked = [check_judgement(judgement) for judgement in judgements]
        with self.transaction() as db:
            return sum(self._add(db, judgement) for judgement in checked)

    def _add(self, db: sqlite3.Connection, judgement: Judgement) -> bool:
        known = db.execute(_SELECT + _FROM + "WHERE j.id = ?", (judgement.id,)).fetchone()
        if known:
            stored = _judgement(known)
            # The store itself fills in two fields.
            if stored != replace(judgement, time=judgement.time or stored.time, informed=stored.informed):
                raise UserError(f"judgement {judgement.id!r} exists with other content; give the new one its own id")
            return False
        row = db.execute(
            "SELECT i.number, i.id, q.seed FROM items AS i JOIN queues AS q ON q.number = i.queue WHERE i.id = ?",
            (judgement.item,),
        ).fetchone()
        if not row:
            raise UserError(
                f"judgement {judgement.id!r}: {self.path} has no item {judgement.item!r}; use the run that asked it"
            )
        number, id, seed = row
        if judgement.choice == "undo":
            _check_undo(db, judgement, number)
        draw = derive_seed(seed, "repeat", judgement.annotator, id, bits=53) / 2**53
        db.execute(
            "INSERT OR IGNORE INTO marks (annotator, item, draw) VALUES (?, ?, ?)", (judgement.annotator, number, draw)
        )
        values = asdict(judgement) | {
            "item": number,
            "comment": json.dumps(judgement.comment),
            "time": judgement.time or self._time(db, judgement.annotator),
            "informed": judgement.informed or bool(db.execute(_LOOKED, (number, judgement.annotator)).fetchone()),
        }
        db.execute(
            f"INSERT INTO judgements ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})",
            [values[name] for name in _COLUMNS.split(", ")],
        )
        return True

    def _time(self, db: sqlite3.Connection, annotator: str) -> str:
        """Returns the time; later than the annotator's last judgement, even if the clock was set back.

        Of several answers to an item, the latest counts.
        """
        now = self._clock()
        last = db.execute(
            "SELECT time FROM judgements WHERE annotator = ? ORDER BY number DESC LIMIT 1", (annotator,)
        ).fetchone()
        if last:
            now = max(now, datetime.fromisoformat(last[0]) + timedelta(milliseconds=1))
        return now.isoformat(timespec="milliseconds")

    def look(self, judgement: Judgement) -> Item:
        """Returns the item of an answer that still counts, with why it was asked; the log keeps that it was looked at.

        From then on, the annotator's undos of this item and further answers to it are marked as `informed`.

        Raises:
            UserError: the judgement is no answer, or was undone.
        """
        if judgement.choice not in ANSWERED:
            raise UserError("only an answer tells why it was asked; answer the comparison first")
        with self.transaction() as db:
            if db.execute("SELECT 1 FROM judgements WHERE undoes = ?", (judgement.id,)).fetchone():
                raise UserError("this answer was undone; answer the comparison first")
            db.execute(
                "INSERT OR IGNORE INTO looks (judgement, time) VALUES (?, ?)",
                (judgement.id, self._clock().isoformat(timespec="milliseconds")),
            )
            return self.item(judgement.item)

    def judgement(self, id: str) -> Judgement | None:
        """Returns the judgement with this id, or None."""
        rows = self.rows(_SELECT + _FROM + "WHERE j.id = ?", (check_printable(id, "judgement"),))
        return _judgement(rows[0]) if rows else None

    def has_judged(self, annotator: str) -> bool:
        """Checks whether the log has a judgement of this annotator, in any queue."""
        return bool(self.rows("SELECT 1 FROM judgements WHERE annotator = ? LIMIT 1", (annotator,)))

    def judgements(self, queue: str | None = None) -> list[Judgement]:
        """Returns the log in the order of writing: of one queue's selected items, or of everything."""
        if queue is None:
            rows = self.rows(_SELECT + _FROM + "ORDER BY j.number")
        else:
            where = "JOIN standing AS s ON s.item = i.number WHERE s.queue = ? ORDER BY j.number"
            rows = self.rows(_SELECT + _FROM + where, (self._queue(queue)[0],))
        return [_judgement(row) for row in rows]


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=float)


def _judgement(row: Sequence[Any]) -> Judgement:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("repeat", "informed"):
        values[name] = bool(values[name])
    return Judgement(**values | {"comment": json.loads(values["comment"])})


def _check_undo(db: sqlite3.Connection, undo: Judgement, item: int) -> None:
    where = f"judgement {undo.id!r}"
    target = db.execute("SELECT item, annotator, choice FROM judgements WHERE id = ?", (undo.undoes,)).fetchone()
    if not target:
        raise UserError(f"{where}: there is no judgement {undo.undoes!r} to undo; reload the page")
    if target[:2] != (item, undo.annotator):
        raise UserError(f"{where}: {undo.undoes!r} is of another item or annotator; undo an answer of your own")
    if target[2] == "undo":
        raise UserError(f"{where}: {undo.undoes!r} is itself an undo; answer the comparison again instead")
    if db.execute("SELECT 1 FROM judgements WHERE undoes = ?", (undo.undoes,)).fetchone():
        raise UserError(f"{where}: {undo.undoes!r} is already undone; answer the comparison again instead")
