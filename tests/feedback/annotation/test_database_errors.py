"""What SQLite says about disks and locks, with the remedy of each."""

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shfcas.feedback.annotation.database import StoreError, connect, store_errors


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("PROTOCOL", "put the run on a local disk"),
        ("NOLFS", "put the run on a local disk"),
        ("IOERR_LOCK", "put the run on a local disk"),
        ("IOERR_SHMMAP", "put the run on a local disk"),
        ("IOERR_SHMSIZE", "no space left on the disk; .*free some space"),
        ("FULL", "no space left on the disk; .*free some space"),
        ("IOERR_WRITE", "check the disk, its space and your quota"),
        ("IOERR_FSYNC", "check the disk, its space and your quota"),
        ("BUSY", "end that process, or try again"),
        ("BUSY_SNAPSHOT", "end that process, or try again"),
        ("READONLY", "choose a folder you may write to"),
        ("CORRUPT", "restore a backup"),
    ],
)
def test_an_error_of_the_disk_names_file_and_remedy(name: str, remedy: str) -> None:
    error = sqlite3.OperationalError("said by SQLite")
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    with (
        pytest.raises(StoreError, match=rf"^run/feedback\.sqlite: .*{remedy}.* \(said by SQLite\)$"),
        store_errors(Path("run/feedback.sqlite")),
    ):
        raise error


def test_an_error_of_a_statement_is_no_error_of_the_disk() -> None:
    db = sqlite3.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError, match="no such table"), store_errors(Path("feedback.sqlite")):
        db.execute("SELECT 1 FROM absent")
    db.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.system
@pytest.mark.parametrize("pages", [1, 2, 5, 9, 20])
def test_a_disk_that_is_full_from_the_start(pages: int, disk: Path) -> None:
    """The file, its log and the log's index may each be the one that finds no space."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    with pytest.raises(StoreError, match="no space left on the disk"):
        connect(disk / "feedback.sqlite")
