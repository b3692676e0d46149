"""The SQLite file that judgements are kept in: how it is opened, what tables it has, what its errors mean."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shfcas.utils.errors import UserError

APPLICATION = 0x53484643  # "SHFC": tells our files from other programs'
VERSION = 1
BUSY_SECONDS = 30.0

# Queues, items and judgements are never changed: triggers forbid it. `marks` (what the judgements of a person about an
# item come to) and `standing` (what those of all people come to) only repeat the log, so that nobody has to read all
# of it to find the next item; the trigger that keeps them counts them anew from the log, for the one item each time.
_TABLES = """
CREATE TABLE queues (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seed TEXT NOT NULL);
CREATE TABLE items (
    number INTEGER PRIMARY KEY,  -- consecutive in a queue, in the order of its positions
    id TEXT NOT NULL UNIQUE,
    queue INTEGER NOT NULL REFERENCES queues (number),
    position INTEGER NOT NULL,
    content TEXT NOT NULL,  -- JSON in ASCII: a text may hold what UTF-8 cannot
    UNIQUE (queue, position)
);
CREATE TABLE judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    choice TEXT NOT NULL,
    left TEXT NOT NULL,
    strength TEXT,
    comment TEXT NOT NULL,  -- JSON in ASCII
    seconds REAL,
    repeat INTEGER NOT NULL,
    undoes TEXT UNIQUE REFERENCES judgements (id),
    page_version TEXT NOT NULL,
    time TEXT NOT NULL
);
CREATE INDEX judged_item ON judgements (item, annotator);
CREATE INDEX judged_by ON judgements (annotator, number);
CREATE TABLE marks (
    annotator TEXT NOT NULL,
    item INTEGER NOT NULL REFERENCES items (number),
    draw REAL NOT NULL,  -- from 0 to below 1: the item is asked again where this is below the share of repeats
    votes INTEGER NOT NULL DEFAULT 0,
    repeats INTEGER NOT NULL DEFAULT 0,
    skips INTEGER NOT NULL DEFAULT 0,
    flags INTEGER NOT NULL DEFAULT 0,
    last INTEGER,  -- number of the last judgement that counts
    PRIMARY KEY (annotator, item)
) WITHOUT ROWID;
CREATE INDEX voted ON marks (item) WHERE votes > 0;
CREATE INDEX repeatable ON marks (annotator, draw) WHERE votes > 0 AND repeats = 0;
CREATE TABLE standing (
    item INTEGER PRIMARY KEY REFERENCES items (number),
    queue INTEGER NOT NULL,
    people INTEGER NOT NULL DEFAULT 0,  -- how many answered
    flagged INTEGER NOT NULL DEFAULT 0  -- whether anybody flagged it
);
CREATE INDEX stands ON standing (queue, flagged, people, item);
CREATE TABLE leases (
    item INTEGER NOT NULL REFERENCES items (number),
    annotator TEXT NOT NULL,
    repeat INTEGER NOT NULL,
    expires REAL NOT NULL,  -- seconds since 1970
    PRIMARY KEY (item, annotator)
) WITHOUT ROWID;
CREATE INDEX expiring ON leases (expires);
CREATE INDEX leased_to ON leases (annotator);
CREATE TRIGGER judged AFTER INSERT ON judgements BEGIN
    UPDATE marks SET (votes, repeats, skips, flags, last) = (
        SELECT
            count(*) FILTER (WHERE NOT repeat AND choice IN ('first', 'second', 'tie', 'both_bad')),
            count(*) FILTER (WHERE repeat),
            count(*) FILTER (WHERE NOT repeat AND choice = 'skip'),
            count(*) FILTER (WHERE choice = 'flag'),
            max(number)
        FROM judgements AS j
        WHERE item = NEW.item AND annotator = NEW.annotator AND choice <> 'undo'
            AND NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = j.id)
    ) WHERE item = NEW.item AND annotator = NEW.annotator;
    UPDATE standing SET
        people = (SELECT count(*) FROM marks WHERE item = NEW.item AND votes > 0),
        flagged = EXISTS (
            SELECT 1 FROM judgements AS j WHERE item = NEW.item AND choice = 'flag'
                AND NOT EXISTS (SELECT 1 FROM judgements WHERE undoes = j.id)
        )
    WHERE item = NEW.item;
    DELETE FROM leases WHERE item = NEW.item AND annotator = NEW.annotator AND NEW.choice <> 'undo';
END;
"""
_FROZEN = "".join(
    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
    "BEGIN SELECT RAISE(ABORT, 'rows are added and never changed'); END;\n"
    for table in ("queues", "items", "judgements")
    for verb in ("UPDATE", "DELETE")
)


class StoreError(UserError):
    """The file of judgements cannot be read or written; what was acknowledged before is kept."""


def connect(path: Path, busy_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    """Opens the file, which is made if it is not there, for use by several threads in turn.

    The journal is a write-ahead log and every commit waits for the disk (`synchronous = FULL`), so that what was
    committed outlives a killed process and a power cut.

    Raises:
        StoreError: no folder, no permission, a file of another program or of a newer version.
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {path.parent}; name a run directory that exists")
    with store_errors(path):
        db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
        try:
            # a foreign file is recognised before anything is written to it
            _check(db, path)
            journal = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if journal != "wal":
                raise StoreError(f"{path}: no write-ahead log is possible here; put the run on a local disk")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")  # macOS: past the disk's own cache
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA recursive_triggers = ON")  # or REPLACE would delete without the triggers
            _make(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _check(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file has our tables already; an error where it has somebody else's."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if empty and application == version == 0:
        return False
    if application != APPLICATION:
        raise StoreError(f"{path}: a database of another program, not judgements; move it away or name another run")
    if version > VERSION:
        raise StoreError(
            f"{path}: written by a newer shfcas (layout {version}, this one knows {VERSION}); update shfcas"
        )
    return True


def _make(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables, unless another process just did."""
    if _check(db, path):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if not _check(db, path):
            for statement in _statements(_TABLES + _FROZEN):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("COMMIT")
    except BaseException:
        rollback(db)
        raise


def _statements(script: str) -> Iterator[str]:
    """One statement after another (`executescript` would commit the open transaction)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def rollback(db: sqlite3.Connection) -> None:
    """Undoes the open transaction; after some errors SQLite has done so already."""
    if db.in_transaction:
        db.execute("ROLLBACK")


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors about the disk and the file into `StoreError`, which says what to do."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        remedy = _REMEDIES.get(code, _REMEDIES.get(code & 0xFF))  # the low byte is the class of the error
        if remedy is None:
            raise
        raise StoreError(f"{path}: {remedy} ({error})") from error


_REMEDIES = {
    sqlite3.SQLITE_FULL: "no space left on the disk; every saved answer is kept: free some space and try again",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written; every saved answer is kept: look at the disk, try again",
    sqlite3.SQLITE_BUSY: "another process has kept it locked for too long; end that process, or try again",
    sqlite3.SQLITE_LOCKED: "another process has kept it locked for too long; end that process, or try again",
    sqlite3.SQLITE_READONLY: "may not be written; choose a folder you may write to",
    sqlite3.SQLITE_PERM: "may not be written; choose a folder you may write to",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; choose a folder you may write to",
    sqlite3.SQLITE_NOTADB: "not a file of judgements; move it away or name another run",
    sqlite3.SQLITE_CORRUPT: "damaged; keep a copy of it and of the files beside it, and restore a backup",
}
