"""Access by many threads: readers never wait, writers wait for a limited time, and a replaced file is noticed."""

import os
import shutil
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shfcas.feedback.annotation.aggregation import effective, votes
from shfcas.feedback.annotation.backup import backup
from shfcas.feedback.annotation.database import side_files
from shfcas.feedback.annotation.store import Store, StoreError
from shfcas.utils.errors import UserError
from tests.support.queues import judged, make_queue

ITEMS = make_queue(5)


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Another connection keeps the file for itself."""
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


def test_readers_do_not_wait_for_another_process_that_writes(store: Store) -> None:
    store.record(judged(ITEMS[0], "ada", "tie", id="before"))
    with locked(store):
        assert [j.id for j in store.judgements()] == ["before"]
        assert store.items("round-1") == ITEMS


def test_readers_do_not_wait_for_a_thread_that_writes(store: Store) -> None:
    read = []
    with store.transaction() as db:
        db.execute("INSERT INTO queues (name, seed) VALUES ('half', '0')")
        thread = threading.Thread(target=lambda: read.append(store.queues()))
        thread.start()
        thread.join()
        assert store.queues() == ["round-1", "half"]  # the writer sees what it wrote
    assert read == [["round-1"]]


def test_all_writes_of_a_block_share_one_limit(store: Store) -> None:
    with locked(store):
        begin = time.monotonic()
        with store.within(0.2):
            for _ in range(50):
                with pytest.raises(StoreError, match="locked by another process"):
                    store.record(judged(ITEMS[0], "ada", "tie"))
        assert time.monotonic() - begin < 25  # 50 limits would be 10 s, 50 times the general one 25 minutes
    assert store.record(judged(ITEMS[0], "ada", "tie"))


def test_a_write_waits_for_other_threads_within_its_limit(store: Store) -> None:
    errors: list[StoreError] = []

    def write() -> None:
        try:
            with store.within(0.05):
                store.record(judged(ITEMS[0], "ada", "tie"))
        except StoreError as error:
            errors.append(error)

    with store.transaction():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert "other answers are being written for too long" in str(errors[0])


def test_a_part_of_a_transaction_is_written_with_the_whole_or_not_at_all(store: Store) -> None:
    with pytest.raises(KeyError), store.transaction():
        store.record(judged(ITEMS[0], "ada", "tie"))
        raise KeyError
    assert store.judgements() == []


def vanish(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    copy = file.with_name("copy")
    shutil.copyfile(file, copy)
    copy.rename(file)


@pytest.mark.parametrize("change", [vanish, replace])
@pytest.mark.parametrize("part", ["", "-wal", "-shm"])
def test_no_answer_is_acknowledged_by_a_file_that_is_not_on_the_disk(store: Store, change, part: str) -> None:
    for k in range(3):
        store.record(judged(ITEMS[k], "ada", "tie", id=f"answer-{k}"))
    change(store.path.with_name(store.path.name + part))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"was moved or deleted while it was open.*copy with all saved answers is"):
            store.record(judged(ITEMS[3], "ada", "tie", id="too late"))
    (rescued,) = store.path.parent.glob("feedback.rescued-*.sqlite")
    with Store(rescued) as again:
        assert [j.id for j in again.judgements()] == ["answer-0", "answer-1", "answer-2"]


def test_an_answer_is_not_acknowledged_if_the_log_vanished_while_it_was_written(store: Store) -> None:
    with pytest.raises(StoreError, match="was moved or deleted"), store.transaction():
        store.record(judged(ITEMS[0], "ada", "tie"))
        side_files(store.path)[0].unlink()


@pytest.mark.parametrize("mode", [0o644, 0o666, 0o640])
def test_files_of_judgements_are_private_also_those_from_before(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "feedback.sqlite"
    before = os.umask(0o022)
    try:
        with Store(path) as first:
            first.add_queue(ITEMS, seed=3)
            for file in (path, *side_files(path)):
                file.chmod(mode)
            with Store(path) as second:
                second.record(judged(ITEMS[0], "ada", "tie"))
                files = (path, *side_files(path))
                assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    finally:
        os.umask(before)


def test_a_clock_that_was_set_back_does_not_change_which_answer_is_the_latest(tmp_path: Path) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    with Store(tmp_path / "a.sqlite", clock=lambda: now) as store:
        store.add_queue(ITEMS, seed=3)
        for choice in ("first", "second", "tie"):
            store.record(judged(ITEMS[0], "ada", choice, id=choice))
            now -= timedelta(hours=1)
        store.record(judged(ITEMS[0], "ben", "first"))
        log = store.judgements()
        assert votes(effective(log))[ITEMS[0].id]["ada"].choice == "tie"
        assert [j.time for j in log[:3]] == [f"2026-03-01T00:00:00.00{k}+00:00" for k in range(3)]
        assert log[3].time == "2026-02-28T21:00:00.000+00:00"  # the first of this annotator


def test_a_live_file_is_backed_up(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "kept" / "backup.sqlite"
    with store.transaction():  # another thread is writing
        store.record(judged(ITEMS[0], "ada", "tie", id="later"))
        assert backup(store.path, target) == 0
    assert backup(store.path, target, replace=True) == 1
    assert [file.name for file in target.parent.iterdir()] == ["backup.sqlite"]  # whole, without a log beside it
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with Store(target) as copy:
        assert [j.id for j in copy.judgements()] == ["later"] and copy.items("round-1") == ITEMS


def test_a_backup_replaces_nothing_unless_it_is_told_to(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "notes"
    target.write_text("mine")
    with pytest.raises(UserError, match="notes exists; name another file, or replace it with --replace true"):
        backup(store.path, target)
    assert target.read_text() == "mine"
    for again in (False, True):
        with pytest.raises(UserError, match="is the file to copy; name another"):
            backup(store.path, store.path, replace=again)
    with pytest.raises(StoreError, match="cannot be opened"):
        backup(tmp_path / "absent", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_damaged_file_makes_no_backup(store: Store, tmp_path: Path) -> None:
    for k in range(40):
        store.record(judged(ITEMS[0], "ada", "tie", comment="x" * 2000, id=f"answer-{k}"))
    store.close()
    with store.path.open("r+b") as file:
        file.seek(4096 * 20)
        file.write(b"\xff" * 4096 * 3)
    with pytest.raises(StoreError, match="damaged"):
        backup(store.path, tmp_path / "b")
    assert not (tmp_path / "b").exists()
