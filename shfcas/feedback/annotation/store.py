"""The store of comparisons and judgements: rows are added durably and never changed."""

import dataclasses
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.checks import check_judgement, check_printable
from shfcas.feedback.annotation.database import BUSY_SECONDS, StoreError, connect, rollback, store_errors
from shfcas.feedback.annotation.schema import Item, Judgement
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

__all__ = ["STORE", "Store", "StoreError"]

STORE = "feedback.sqlite"  # in the run directory

_COLUMNS = "id, item, annotator, choice, left, strength, comment, seconds, repeat, undoes, page_version, time"
_SELECT = f"SELECT {', '.join('i.id' if c == 'item' else f'j.{c}' for c in _COLUMNS.split(', '))} "
_FROM = "FROM judgements AS j JOIN items AS i ON i.number = j.item "


class Store:
    """Judgements of a run in one SQLite file, which several threads and processes may have open at once.

    Args:
        path: the file, `feedback.sqlite` in the run directory; created if it is missing.
        busy_seconds: how long to wait for another process that is writing.

    Raises:
        StoreError: the file cannot be opened, or is not a file of judgements. Every method raises it too if the disk
            is full or another process has locked the file; acknowledged judgements are kept.
    """

    def __init__(self, path: str | Path, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._db = connect(self.path, busy_seconds)
        self._file = self._inode()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and ends the use of this store."""
        with self._lock:
            self._db.close()

    def _inode(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Runs the block as one transaction: all of it is written or nothing, and nobody else writes meanwhile.

        Args:
            durable: wait for the disk. If False, the rows survive the end of the process but maybe not a power cut.
                That is enough for leases, and saves the wait.
        """
        with self._lock, store_errors(self.path):
            if self._inode() != self._file:  # writes to a deleted file are lost without an error
                raise StoreError(f"{self.path} was moved or deleted while it was open; put it back and start again")
            if not durable:
                self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    rollback(self._db)
                    raise
            finally:
                if not durable:
                    self._db.execute("PRAGMA synchronous = FULL")

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Returns the rows of a query."""
        with self._lock, store_errors(self.path):
            return self._db.execute(query, values).fetchall()

    def add_queue(self, items: Sequence[Item], seed: int) -> None:
        """Adds all items of one queue. Adding the same queue again changes nothing, nor does an empty list.

        Args:
            items: the items of one queue, with unique ids and positions.
            seed: seed of sides and repeats.

        Raises:
            UserError: the store has this queue with other items or another seed.
        """
        if not items:
            return
        queue = items[0].queue
        rows = [(item.id, item.position, _item_json(item)) for item in sorted(items, key=lambda item: item.position)]
        if any(item.queue != queue for item in items):
            raise UserError(f"items: expected one queue, got {queue!r} and others; add one queue at a time")
        if len({row[0] for row in rows}) < len(rows) or len({row[1] for row in rows}) < len(rows):
            raise UserError(f"queue {queue!r} asks the same comparison twice; ask each once")
        with self.transaction() as db:
            known = db.execute("SELECT number, seed FROM queues WHERE name = ?", (queue,)).fetchone()
            if known:
                number, known_seed = known
                stored = db.execute(
                    "SELECT id, position, content FROM items WHERE queue = ? ORDER BY position", (number,)
                ).fetchall()
                if stored != rows or int(known_seed) != seed:
                    raise UserError(
                        f"{self.path} has queue {queue!r} with other comparisons or another seed; "
                        "start a new run directory, or move this file away and start over"
                    )
                return
            number = db.execute("INSERT INTO queues (name, seed) VALUES (?, ?)", (queue, str(seed))).lastrowid
            other = _known(db, [row[0] for row in rows])
            if other:
                raise UserError(f"{self.path} has item {other!r} in another queue; make new items for {queue!r}")
            db.executemany(
                "INSERT INTO items (id, queue, position, content) VALUES (?, ?, ?, ?)",
                [(id, number, position, content) for id, position, content in rows],
            )
            db.execute("INSERT INTO standing (item, queue) SELECT number, queue FROM items WHERE queue = ?", (number,))

    def queues(self) -> list[str]:
        """Returns the names of the queues, oldest first."""
        return [name for (name,) in self.rows("SELECT name FROM queues ORDER BY number")]

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
        number = self._queue(queue)[0]
        rows = self.rows("SELECT content FROM items WHERE queue = ? ORDER BY position", (number,))
        return [Item(**json.loads(content)) for (content,) in rows]

    def item_ids(self, queue: str) -> list[str]:
        """Returns the ids of a queue's items, by position, without reading their long texts."""
        number = self._queue(queue)[0]
        return [id for (id,) in self.rows("SELECT id FROM items WHERE queue = ? ORDER BY position", (number,))]

    def item(self, id: str) -> Item:
        """Returns the item with this id.

        Raises:
            UserError: there is no such item.
        """
        rows = self.rows("SELECT content FROM items WHERE id = ?", (check_printable(id, "item"),))
        if not rows:
            raise UserError(f"{self.path} has no item {id!r}; reload the page, or import into the run it came from")
        return Item(**json.loads(rows[0][0]))

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
            if stored != dataclasses.replace(judgement, time=judgement.time or stored.time):
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
        values = dataclasses.asdict(judgement) | {
            "item": number,
            "comment": json.dumps(judgement.comment),
            "time": judgement.time or datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        db.execute(
            f"INSERT INTO judgements ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})",
            [values[name] for name in _COLUMNS.split(", ")],
        )
        return True

    def judgement(self, id: str) -> Judgement | None:
        """Returns the judgement with this id, or None."""
        rows = self.rows(_SELECT + _FROM + "WHERE j.id = ?", (check_printable(id, "judgement"),))
        return _judgement(rows[0]) if rows else None

    def has_judged(self, annotator: str) -> bool:
        """Checks whether the log has a judgement of this annotator, in any queue."""
        return bool(self.rows("SELECT 1 FROM judgements WHERE annotator = ? LIMIT 1", (annotator,)))

    def judgements(self, queue: str | None = None) -> list[Judgement]:
        """Returns the log of one queue, or of all queues, in the order of writing."""
        if queue is None:
            rows = self.rows(_SELECT + _FROM + "ORDER BY j.number")
        else:
            rows = self.rows(_SELECT + _FROM + "WHERE i.queue = ? ORDER BY j.number", (self._queue(queue)[0],))
        return [_judgement(row) for row in rows]


def _item_json(item: Item) -> str:
    check_printable(item.id, "item")
    check_printable(item.queue, "queue")
    return json.dumps(dataclasses.asdict(item), sort_keys=True, default=float)


def _known(db: sqlite3.Connection, ids: list[str]) -> str | None:
    """Returns the first of these item ids that the store has."""
    rows = (db.execute("SELECT id FROM items WHERE id = ?", (id,)).fetchone() for id in ids)
    return next((row[0] for row in rows if row), None)


def _judgement(row: Sequence[Any]) -> Judgement:
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    return Judgement(**values | {"comment": json.loads(values["comment"]), "repeat": bool(values["repeat"])})


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
