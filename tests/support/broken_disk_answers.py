"""Answers written to a disk that fails at each of its writes and flushes in turn; run with `broken_disk.so` preloaded.

    python -m tests.support.broken_disk_answers FOLDER KIND

For each k, a child process of its own makes FOLDER/k/feedback.sqlite, arms the disk, and answers and undoes until it is
done. It writes each acknowledged id to FOLDER/k/acknowledged. The parent stops after a k that nothing reached.
"""

import ctypes
import os
import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

from shfcas.feedback.annotation.store import Store, StoreError
from tests.support.queues import judged, make_queue

DISK = ctypes.CDLL(None)
ANSWERS = 8
ITEMS = make_queue(3)


def answer(folder: Path, kind: int, k: int) -> int:
    """Returns how many writes and flushes there were."""
    with (folder / "acknowledged").open("a") as acknowledged, Store(folder / "feedback.sqlite") as store:
        store.add_queue(ITEMS, seed=0)
        DISK.broken_disk(kind, k)
        for number in range(ANSWERS):
            if number == ANSWERS // 2:  # as SQLite does now and then by itself
                with suppress(sqlite3.Error):
                    store._database._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]
            id = f"answer-{number}"
            rows = [judged(ITEMS[number % 3], "ada", "first", id=id, comment="x" * 300)]
            if number % 4 == 3:
                rows.append(judged(ITEMS[number % 3], "ada", "undo", id=f"undo-{number}", undoes=id))
            for _ in range(2):  # the page sends again what failed
                try:
                    store.record_all(rows)
                except StoreError:
                    continue
                acknowledged.write("".join(f"{row.id}\n" for row in rows))
                acknowledged.flush()
                break
        return int(DISK.broken_disk(0, 0))


def main() -> None:
    folder, kind = Path(sys.argv[1]), int(sys.argv[2])
    k = 0
    while k < 1000:
        k += 1
        (folder / str(k)).mkdir()
        child = os.fork()
        if not child:
            seen = answer(folder / str(k), kind, k)
            os._exit(0 if 0 <= seen < k else 1)
        if os.waitpid(child, 0)[1] == 0:
            return
    raise SystemExit("the disk was never whole")


if __name__ == "__main__":
    main()
