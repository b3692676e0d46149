"""Backups of the file of judgements, also while its page is open."""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from shfcas.feedback.annotation.database import PRIVATE, StoreError, connect_to_read, store_errors
from shfcas.utils.errors import UserError
from shfcas.utils.files import atomic_file

logger = logging.getLogger(__name__)

BACKUP = "feedback.backup.sqlite"  # in the run directory
EVERY_SECONDS = 300.0


def backup(source: str | Path, target: str | Path, replace: bool = False) -> int:
    """Copies a file of judgements while other processes may write to it; the copy is one moment of the original.

    The copy is a single file that only its owner may read. It is checked before it gets its name.

    Args:
        source: the file of judgements.
        target: the file to write.
        replace: replace an existing file.

    Returns:
        The number of judgements in the copy.

    Raises:
        UserError: the target exists and `replace` is not set, or it is the source.
        StoreError: the source cannot be read, the target cannot be written, or the copy is damaged.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not replace or target.samefile(source)):
        if target.samefile(source):
            raise UserError(f"{target} is the file to copy; name another one")
        raise UserError(f"{target} exists; name another file, or replace it with --replace true")
    with closing(connect_to_read(source)) as db:
        copy_database(db, target)
    with closing(connect_to_read(target)) as copy:
        return int(copy.execute("SELECT count(*) FROM judgements").fetchone()[0])


@contextmanager
def backed_up(source: Path, target: Path, seconds: float = EVERY_SECONDS) -> Iterator[None]:
    """Keeps a backup of a file while the context lasts: one copy, renewed when answers were added.

    Args:
        source: the file of judgements.
        target: the backup. It is whole at any time.
        seconds: at least this long between two copies; one more is made at the end.
    """
    end = threading.Event()
    thread = threading.Thread(target=_keep, args=(source, target, seconds, end), name="backup", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _keep(source: Path, target: Path, seconds: float, end: threading.Event) -> None:
    copied = -1
    while True:
        last = end.wait(seconds)
        try:
            with closing(connect_to_read(source)) as db:
                newest = db.execute("SELECT ifnull(max(number), 0) FROM judgements").fetchone()[0]
                if newest > max(copied, 0):
                    copy_database(db, target)
            copied = newest
        except (OSError, UserError) as error:
            logger.error("no backup: %s", error)
        if last:
            return


def copy_database(db: sqlite3.Connection, target: Path) -> None:
    """Writes everything that a connection sees into a new file, checks it, and gives it its name.

    Raises:
        StoreError: the disk is full, or the copy is damaged.
    """
    with atomic_file(target) as partial, store_errors(target):
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
        with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
            db.backup(copy)  # in one step, so a single moment; writers do not wait for it
            copy.execute("PRAGMA journal_mode = DELETE")  # a single file
            found = [row[0] for row in copy.execute("PRAGMA integrity_check")]
            found += [f"row of {row[0]} without its {row[2]}" for row in copy.execute("PRAGMA foreign_key_check")]
        if found != ["ok"]:
            raise StoreError(f"{target}: the copy is damaged ({found[0]}), so it was not kept; check the original")
