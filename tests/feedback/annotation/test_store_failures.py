"""The log of judgements when processes are killed or race, the disk is full, or the file is none."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shfcas.feedback.annotation.schema import Judgement
from shfcas.feedback.annotation.store import Store, StoreError
from tests.support.queues import judged, make_queue

ITEMS = make_queue(5)


# a fork and not a fresh interpreter, which would load torch; every store is closed before, as SQLite wants it
PROCESSES = multiprocessing.get_context("fork")


def write_until_killed(path: Path, out: int) -> None:
    with Store(path) as store:
        for k in range(100_000):
            batch = [judged(ITEMS[0], "ada", "tie", id=f"{k}-{part}", comment="x" * 3000) for part in range(3)]
            assert store.record_all(batch) == 3
            os.write(out, f"{k}\n".encode())


@pytest.mark.system
@pytest.mark.parametrize("wait", [1, 2, 30, 31, 100])
def test_what_a_killed_process_acknowledged_is_kept_and_the_rest_is_whole_or_absent(store: Store, wait: int) -> None:
    store.close()
    reading, writing = os.pipe()
    writer = PROCESSES.Process(target=write_until_killed, args=(store.path, writing))
    writer.start()
    os.close(writing)
    with os.fdopen(reading) as lines:
        acknowledged = [int(lines.readline()) for _ in range(wait)]
        writer.kill()
        acknowledged += [int(line) for line in lines]
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert acknowledged == list(range(len(acknowledged)))
    with Store(store.path) as again:
        ids = [j.id for j in again.judgements()]
        batches = len(ids) // 3
        assert ids == [f"{k}-{part}" for k in range(batches) for part in range(3)]
        assert len(acknowledged) <= batches <= len(acknowledged) + 1
        assert again.rows("PRAGMA integrity_check") == [("ok",)]
        assert again.record(judged(ITEMS[1], "ada", "tie"))


def test_a_log_that_was_cut_off_anywhere_opens_with_whole_batches(store: Store, tmp_path: Path) -> None:
    for k in range(6):
        store.record_all([judged(ITEMS[0], "ada", "tie", id=f"{k}-{part}", comment="x" * 3000) for part in range(3)])
    database = store.path.read_bytes()
    log = store.path.with_name("feedback.sqlite-wal").read_bytes()
    found = []
    for length in [*range(0, len(log), 9973), len(log)]:
        cut = tmp_path / f"cut-{length}"
        cut.mkdir()
        (cut / "feedback.sqlite").write_bytes(database)
        (cut / "feedback.sqlite-wal").write_bytes(log[:length])
        with Store(cut / "feedback.sqlite") as again:
            ids = [j.id for j in again.judgements()]
        assert ids == [f"{k}-{part}" for k in range(len(ids) // 3) for part in range(3)]
        found.append(len(ids) // 3)
    assert found == sorted(found)
    assert set(found) == set(range(7))


def test_threads_that_send_the_same_judgements_write_each_once(store: Store) -> None:
    sent = [judged(ITEMS[k % 5], f"person {k % 3}", "first", id=f"same {k}") for k in range(40)]
    with ThreadPoolExecutor(8) as threads:
        written = list(threads.map(store.record, sent * 8))
    assert sum(written) == 40
    assert sorted(j.id for j in store.judgements()) == sorted(j.id for j in sent)


def send(path: Path, sent: list[Judgement], start: Any, written: Any) -> None:
    with Store(path) as store:
        start.wait()
        written.put(sum(store.record(judgement) for judgement in sent))


def test_processes_that_send_the_same_judgements_write_each_once(store: Store) -> None:
    sent = [judged(ITEMS[k % 5], "ada", "first", id=f"same {k}") for k in range(60)]
    store.close()
    start, written = PROCESSES.Barrier(3), PROCESSES.Queue()
    senders = [
        PROCESSES.Process(target=send, args=(store.path, order, start, written))
        for order in (sent, sent[::-1], sent[30:] + sent[:30])
    ]
    for sender in senders:
        sender.start()
    assert sum(written.get(timeout=100) for _ in senders) == 60
    for sender in senders:
        sender.join()
    with Store(store.path) as again:
        assert sorted(j.id for j in again.judgements()) == sorted(j.id for j in sent)


def test_processes_that_open_a_new_file_at_once_make_one(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    start = threading.Barrier(6)

    def open_and_add(k: int) -> None:
        start.wait()
        with Store(path) as store:
            store.add_queue(ITEMS, seed=3)
            store.record(judged(ITEMS[0], "ada", "tie", id=f"of {k}"))

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(open_and_add, range(6)))
    with Store(path) as store:
        assert len(store.judgements()) == 6
        assert store.items("round-1") == ITEMS


def test_a_new_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
    release.start()
    with Store(path) as store:
        store.add_queue(ITEMS, seed=3)
    release.join()
    other.close()


def limit_pages(store: Store, pages: int) -> None:
    with store.transaction() as db:
        db.execute(f"PRAGMA max_page_count = {pages}")


def fill(store: Store) -> list[str]:
    """Records until the disk is full."""
    written: list[str] = []
    with pytest.raises(StoreError, match=r"no space left on the disk; every saved answer is kept; free some space"):
        for k in range(10_000):
            store.record(judged(ITEMS[0], "ada", "tie", id=f"n{k}", comment="x" * 2000))
            written.append(f"n{k}")
    return written


def test_a_full_disk_is_said_and_loses_nothing(store: Store) -> None:
    pages = store.rows("PRAGMA page_count")[0][0]
    limit_pages(store, pages + 20)
    written = fill(store)
    assert len(written) > 5
    with pytest.raises(StoreError, match="no space left"):
        store.record_all([judged(ITEMS[0], "ada", "tie", comment="x" * 2000) for _ in range(9)])
    assert [j.id for j in store.judgements()] == written
    assert store.rows("PRAGMA integrity_check") == [("ok",)]
    limit_pages(store, pages + 1000)  # space was freed
    assert store.record(judged(ITEMS[0], "ada", "tie", id="after"))
    assert [j.id for j in store.judgements()] == [*written, "after"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.system
def test_a_file_system_that_is_full_loses_nothing(small_disk: Path) -> None:
    with Store(small_disk / "feedback.sqlite") as store:
        store.add_queue(ITEMS, seed=3)
        written = fill(store)
        assert len(written) > 5
        assert [j.id for j in store.judgements()] == written
    with Store(small_disk / "feedback.sqlite") as store:
        assert [j.id for j in store.judgements()] == written
        assert store.rows("PRAGMA integrity_check") == [("ok",)]


def test_a_file_that_stays_locked_is_said(store: Store) -> None:
    with Store(store.path, busy_seconds=0.05) as other:
        judgement = judged(ITEMS[0], "ada", "tie")
        with store.transaction(), pytest.raises(StoreError, match="locked by another process for too long"):
            other.record(judgement)
        assert other.record(judgement)


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt), store.transaction() as db:
        db.execute("INSERT INTO queues (name, seed) VALUES ('half', '0')")
        raise KeyboardInterrupt
    assert store.queues() == ["round-1"]
    assert store.record(judged(ITEMS[0], "ada", "tie"))


def test_a_newer_file_is_refused_and_not_touched(store: Store) -> None:
    with store.transaction() as db:
        db.execute("PRAGMA user_version = 4")
    store.close()
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match=r"written by a newer shfcas \(layout 4, expected at most 3\); update shfcas"):
        Store(store.path)
    assert store.path.read_bytes() == before


def test_another_programs_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (a)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="a database of another program, not judgements; move it away"):
        Store(path)
    assert path.read_bytes() == before


def test_what_is_no_database_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database\n" * 100)
    with pytest.raises(StoreError, match=r"notes\.txt: not a file of judgements; move it away"):
        Store(path)
    assert path.read_text() == "not a database\n" * 100


def test_an_empty_file_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").touch()
    with Store(tmp_path / "a.sqlite") as store:
        assert store.queues() == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no folder .*typo; give a run directory that exists"):
        Store(tmp_path / "typo" / "feedback.sqlite")
    with pytest.raises(StoreError, match="cannot be opened; choose a folder"):
        Store(tmp_path)


def test_a_damaged_file_is_said(store: Store) -> None:
    store.close()
    with store.path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 8)
    with pytest.raises(StoreError, match="damaged; keep a copy of it"), Store(store.path) as broken:
        broken.judgements()
        broken.items("round-1")


def test_nothing_is_acknowledged_once_the_file_was_taken_away(store: Store, tmp_path: Path) -> None:
    moved = store.path.rename(tmp_path / "elsewhere.sqlite")
    for _ in range(2):
        with pytest.raises(StoreError, match="was moved or deleted while it was open; put it back and start again"):
            store.record(judged(ITEMS[0], "ada", "tie"))
        store.path.touch()  # another file in its place is not the file either
    moved.rename(store.path)
    assert store.record(judged(ITEMS[0], "ada", "tie"))
