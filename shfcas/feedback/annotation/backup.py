"""Backups of the file of judgements, also while its page is open."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from shfcas.feedback.annotation.database import PRIVATE, StoreError, connect_to_read, store_errors
from shfcas.utils.errors import UserError
from shfcas.utils.files import atomic_file


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
        what = "is the file itself" if target.samefile(source) else "exists; set replace to replace it"
        raise UserError(f"{target} {what}, or name another file")
    with closing(connect_to_read(source)) as db:
        copy_database(db, target)
    with closing(connect_to_read(target)) as copy:
        return int(copy.execute("SELECT count(*) FROM judgements").fetchone()[0])


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
