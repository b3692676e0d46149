"""Access to the file of judgements by many threads: one writes at a time, the others read meanwhile."""

import logging
import math
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shfcas.feedback.annotation.backup import copy_database
from shfcas.feedback.annotation.database import (
    StoreError,
    connect,
    connect_to_read,
    rollback,
    side_files,
    store_errors,
)

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0  # how long a reader waits for a process that keeps readers out, too
IDLE_READERS = 8  # connections that are kept open for the next reader


class Database:
    """Connections to one file: one that writes, for one thread at a time, and as many that read as there are readers.

    A reader never waits for a writer, whether it is a thread of this process or another process.

    Args:
        path: the file.
        busy_seconds: how long a write waits for others.
        read_only: change nothing; the file must exist.

    Raises:
        StoreError: the file cannot be opened; see `connect`.
    """

    def __init__(self, path: Path, busy_seconds: float, read_only: bool = False) -> None:
        self.path = path
        self._busy = busy_seconds
        self._lock = threading.Lock()
        self._thread = threading.local()  # of a thread: its `deadline`, and whether it `writes` and how
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._rescued: Path | None = None
        self._writer: sqlite3.Connection | None = None
        if read_only:
            self._readers.append(connect_to_read(path, busy_seconds))
        else:
            self._writer = connect(path, busy_seconds)
            self._files = self._on_disk()

    def close(self) -> None:
        """Closes all connections, that of the writer last: it empties and deletes the write-ahead log."""
        with self._lock:
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            if self._writer:
                self._writer.close()

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limits how long the transactions of this thread wait for others, all of the block together."""
        self._thread.deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._thread.deadline

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Runs the block as one transaction: all of it is written or nothing, and nobody else writes meanwhile.

        A transaction inside another one of the same thread is a part of it.

        Args:
            durable: wait for the disk. If False, the rows survive the end of the process but maybe not a power cut.
                That is enough for leases, and saves the wait. A part is as durable as the whole.

        Raises:
            StoreError: others write for too long; or this file, or a part of it, is no longer the one on the disk.
                Then nothing was written, or what was written is not acknowledged.
        """
        db = self._writer
        if db is None:
            raise StoreError(f"{self.path} is open for reading only")
        if self._writes():
            yield db
            return
        deadline = min(time.monotonic() + self._busy, getattr(self._thread, "deadline", math.inf))
        with store_errors(self.path):
            if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise StoreError(f"{self.path}: other answers are being written for too long; try again")
            try:
                self._check_files(db)
                left = max(0, math.ceil(1000 * (deadline - time.monotonic())))
                db.execute(f"PRAGMA busy_timeout = {left}")
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
                self._thread.writes = True
                try:
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    rollback(db)
                    raise
                finally:
                    self._thread.writes = False
                self._check_files(db)  # the file may have been replaced in between
            finally:
                self._lock.release()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Returns the rows of a query, which sees what this thread's open transaction has written."""
        with store_errors(self.path):
            if self._writes():
                assert self._writer
                return self._writer.execute(query, values).fetchall()
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = connect_to_read(self.path, min(self._busy, READ_SECONDS))
            try:
                return reader.execute(query, values).fetchall()
            finally:
                if self._closed or len(self._readers) >= IDLE_READERS:
                    reader.close()
                else:
                    self._readers.append(reader)

    def _writes(self) -> bool:
        return getattr(self._thread, "writes", False)

    def _on_disk(self) -> list[tuple[int, int] | None]:
        """Returns device and inode of the file, of its write-ahead log and of the log's index."""
        return [_inode(path) for path in (self.path, *side_files(self.path))]

    def _check_files(self, db: sqlite3.Connection) -> None:
        """Checks that the three files are those that were opened: writes to deleted files are lost without an error.

        The open connection can still read the deleted files, so everything that was saved is copied beside them.
        """
        if self._on_disk() == self._files:
            return
        if self._rescued is None:
            target = self.path.with_name(f"{self.path.stem}.rescued-{time.time_ns()}.sqlite")
            with suppress(OSError, sqlite3.Error, StoreError):
                copy_database(db, target)
                self._rescued = target
                logger.error("%s was moved or deleted while it was open; all answers are in %s", self.path, target)
        rescued = f"; a copy with all saved answers is {self._rescued.name}" if self._rescued else ""
        raise StoreError(
            f"{self.path} or its -wal or -shm was moved or deleted while it was open; "
            f"put it back and start again{rescued}"
        )


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
