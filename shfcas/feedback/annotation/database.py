"""The SQLite file of judgements: opening it, and its errors."""

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shfcas.feedback.annotation.tables import VERSION, statements
from shfcas.utils.errors import UserError

APPLICATION = 0x53484643  # "SHFC": marks the files of this package
BUSY_SECONDS = 30.0
PRIVATE = 0o600  # answers and names are for the owner of the run


class StoreError(UserError):
    """Failure to read or write the file of judgements; acknowledged judgements are kept."""


def connect_to_read(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Opens a file without changing it, also while other processes write to it.

    Raises:
        StoreError: the file is missing, cannot be read, or belongs to another program or version.
    """
    with store_errors(path):
        address = f"{path.resolve().as_uri()}?mode=ro"
        db = sqlite3.connect(address, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            layout = _check(db, path)
            if layout < VERSION:
                raise StoreError(f"{path}: expected layout {VERSION}, got {layout}; shfcas annotate updates the file")
        except BaseException:
            db.close()
            raise
    return db


def connect(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Opens the file for use by several threads in turn, and creates it if it is missing.

    The journal is a write-ahead log and every commit waits for the disk (`synchronous = FULL`). So a commit survives
    a killed process and a power cut.

    Raises:
        StoreError: the folder is missing, may not be written, or holds a file of another program or newer version.
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}; give a run directory that exists")
    with store_errors(path):
        db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            # Before anything is written: the file may belong to another program.
            _check(db, path)
            make_private(path)
            journal = _write_ahead(db, busy_seconds)
            if journal != "wal":
                raise StoreError(f"{path}: the file system has no write-ahead log; put the run on a local disk")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")  # macOS: also flush the cache of the disk
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA recursive_triggers = ON")  # otherwise REPLACE deletes rows without the triggers
            _make(db, path)
        except BaseException:
            db.close()
            raise
    return db


def side_files(path: Path) -> tuple[Path, Path]:
    """Returns the write-ahead log of a file and the log's index, which exist while the file is open."""
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def make_private(path: Path) -> None:
    """Takes away the rights of others to a file and its side files; SQLite gives new side files the file's rights.

    Never by opening them: closing a file ends all locks that this process holds on it.
    """
    for file in (path, *side_files(path)):
        with suppress(FileNotFoundError, PermissionError):  # another process closed it; another user owns it
            if stat.S_IMODE(file.stat().st_mode) != PRIVATE:
                os.chmod(file, PRIVATE)


def _write_ahead(db: sqlite3.Connection, busy_seconds: float) -> str:
    """Asks for a write-ahead log; returns the journal that the file now has.

    This statement turns a read lock into a write lock, for which SQLite never waits: while another process opens the
    same new file it fails at once, whatever the timeout. So the waiting is done here.
    """
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            return str(db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(0.01)


def _check(db: sqlite3.Connection, path: Path) -> int:
    """Returns the layout of our tables, 0 if the file is empty; raises if it belongs to another program."""
    # One statement sees one state of the file, while another process may be creating the tables.
    application, version, tables = db.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
        "FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if not tables and application == version == 0:
        return 0
    if application != APPLICATION:
        raise StoreError(f"{path}: a database of another program, not judgements; move it away or give another run")
    if version > VERSION:
        raise StoreError(
            f"{path}: written by a newer shfcas (layout {version}, expected at most {VERSION}); update shfcas"
        )
    return int(version)


def _make(db: sqlite3.Connection, path: Path) -> None:
    """Creates or updates the tables, unless another process just did."""
    if _check(db, path) == VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        layout = _check(db, path)
        if layout < VERSION:
            for statement in statements(layout):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        rollback(db)
        raise


def rollback(db: sqlite3.Connection) -> None:
    """Rolls back the open transaction; after some errors SQLite has done so already."""
    if db.in_transaction:
        db.execute("ROLLBACK")


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors about disk and file into `StoreError`, which names the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        remedy = _REMEDIES.get(code, _REMEDIES.get(code & 0xFF))  # the low byte is the class of the error
        if remedy is None:
            raise
        raise StoreError(f"{path}: {remedy} ({error})") from error


_FULL = "no space left on the disk; every saved answer is kept; free some space and try again"
_NO_LOCKS = "the file system has no locks that SQLite can use, as some network disks; put the run on a local disk"
_REMEDIES = {
    **dict.fromkeys(
        (
            sqlite3.SQLITE_PROTOCOL,
            sqlite3.SQLITE_NOLFS,
            sqlite3.SQLITE_IOERR_LOCK,
            sqlite3.SQLITE_IOERR_RDLOCK,
            sqlite3.SQLITE_IOERR_UNLOCK,
            sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
            sqlite3.SQLITE_IOERR_SHMLOCK,
            sqlite3.SQLITE_IOERR_SHMMAP,
            sqlite3.SQLITE_IOERR_SHMOPEN,
        ),
        _NO_LOCKS,
    ),
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written; every saved answer is kept; check the disk, its space "
    "and your quota, and try again",
    sqlite3.SQLITE_BUSY: "locked by another process for too long; end that process, or try again",
    sqlite3.SQLITE_LOCKED: "locked by another process for too long; end that process, or try again",
    sqlite3.SQLITE_READONLY: "cannot be written; choose a folder you may write to",
    sqlite3.SQLITE_PERM: "cannot be written; choose a folder you may write to",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; choose a folder you may write to",
    sqlite3.SQLITE_NOTADB: "not a file of judgements; move it away or give another run",
    sqlite3.SQLITE_CORRUPT: "damaged; keep a copy of it and of the files beside it, then restore a backup",
}
