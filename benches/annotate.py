"""Annotation server with 50 concurrent annotators, whose answers are written to disk.

    python -m benches.annotate [--quick] [--folder FOLDER]

`shfcas annotate` runs in a separate process. Each simulated annotator has a thread and a connection here, and labels
comparisons until none is left. Each comparison is labelled once. `at once` is without pauses, so that all annotators
compete. `in turn` has a pause after each answer, still much shorter than the time that people need to read. The time of
an answer is measured from sending it to the acknowledgement that it is on disk. `locked` is `in turn` while another
process holds the database's lock for 10 s. Then a request is refused after 2 s and sent again when the reply says so,
as the page does; refused answers are not timed. No request may take over 3 s then. At the end, the log must contain
every acknowledged answer, and every comparison exactly once.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from benches.bench import Case, Settings, report
from benches.clock import FULL, QUICK
from shfcas.feedback.annotation.schema import Item, item_id
from shfcas.feedback.annotation.store import Store

ANSWER = "An answer of some length, as a language model gives it to a question like that one. " * 12


class Load(NamedTuple):
    """Load of one case."""

    case: str
    people: int
    comparisons: int
    pause: float  # seconds after each answer
    locked: float = 0.0  # seconds for which another process holds the lock


class Spent(NamedTuple):
    """Measurements of the annotators."""

    acknowledged: list[str]
    answers: list[float]  # seconds per answer
    tasks: list[float]  # seconds per request of a comparison
    seconds: float  # from the first to the last answer
    refused: int  # requests to be sent again
    slowest: float  # seconds of the slowest request


FULL_LOADS = [Load("at once", 50, 5000, 0.0), Load("in turn", 50, 2000, 1.0), Load("locked", 50, 1000, 1.0, 10.0)]
QUICK_LOADS = [Load("at once", 50, 500, 0.0), Load("in turn", 50, 250, 0.5), Load("locked", 50, 250, 0.5, 5.0)]
MOST_SECONDS = 3.0  # per request
LOCK = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
db.execute("ROLLBACK")
"""


def make_queue(folder: Path, comparisons: int) -> None:
    """Writes a queue of texts with realistic lengths."""
    with Store(folder / "feedback.sqlite") as store:
        store.add_queue(
            [
                Item(
                    item_id("queue", f"p{i}", 0, 1), "queue", 1, i, f"p{i}", 0, 1, f"Question {i}?", ANSWER, ANSWER[7:]
                )
                for i in range(comparisons)
            ],
            seed=0,
        )


@contextmanager
def served(folder: Path, people: int) -> Iterator[tuple[str, list[str]]]:
    """Runs the command in a separate process; yields host and port, and the tokens."""
    names = ",".join(f"a{i}" for i in range(people))
    command = [sys.executable, "-m", "shfcas", "annotate", str(folder), "--port", "0", "--repeat_share", "0"]
    process = subprocess.Popen([*command, "--annotators", names], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        place = process.stdout.readline().partition("http://")[2].partition("/")[0]
        yield place, [process.stdout.readline().strip().partition("#token=")[2] for _ in range(people)]
    finally:
        process.terminate()
        process.wait()


class Person:
    """Simulated annotator with one connection."""

    def __init__(self, place: str, token: str) -> None:
        self.connection = http.client.HTTPConnection(place, timeout=600)
        self.headers = {"Origin": f"http://{place}", "Content-Type": "application/json", "X-CSRF-Token": ""}
        self.acknowledged: list[str] = []
        self.answers: list[float] = []
        self.tasks: list[float] = []
        self.refused, self.slowest = 0, 0.0
        me, cookie = self._ask("POST", "/api/sign-in", {"token": token})
        self.headers |= {"X-CSRF-Token": me["csrf"], "Cookie": cookie.partition(";")[0]}

    def work(self, pause: float) -> None:
        """Labels comparisons until none is left."""
        while True:
            begin = time.perf_counter()
            task = self._ask("GET", "/api/next")[0]["task"]
            self.tasks.append(time.perf_counter() - begin)
            if task is None:
                return
            body = {"id": str(uuid.uuid4()), "item": task["id"], "shown": task["shown"], "choice": "left"}
            begin, refused = time.perf_counter(), self.refused
            reply = self._ask("POST", "/api/judgements", body)[0]
            if self.refused == refused:
                self.answers.append(time.perf_counter() - begin)
            assert reply["saved"] and reply["new"], reply
            self.acknowledged.append(body["id"])
            time.sleep(pause)

    def _ask(self, method: str, path: str, body: object = None) -> tuple[dict, str]:
        while True:
            begin = time.perf_counter()
            self.connection.request(method, path, None if body is None else json.dumps(body), self.headers)
            response = self.connection.getresponse()
            content = response.read()
            self.slowest = max(self.slowest, time.perf_counter() - begin)
            if response.status != 503:
                assert response.status == 200, content
                return json.loads(content), response.headers.get("Set-Cookie", "")
            self.refused += 1
            time.sleep(float(response.headers["Retry-After"]))


@contextmanager
def locked(folder: Path, seconds: float) -> Iterator[None]:
    """Has another process hold the lock for some seconds from now on."""
    if not seconds:
        yield
        return
    command = [sys.executable, "-c", LOCK, str(folder / "feedback.sqlite"), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "locked\n"
        yield


def run(load: Load, folder: Path) -> Spent:
    """Runs all annotators until no comparison is left, then compares the log with the acknowledged answers."""
    make_queue(folder, load.comparisons)
    with served(folder, load.people) as (place, tokens):
        people = [Person(place, token) for token in tokens]
        threads = [threading.Thread(target=person.work, args=(load.pause,)) for person in people]
        begin = time.perf_counter()
        with locked(folder, load.locked):
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        seconds = time.perf_counter() - begin
    acknowledged = [id for person in people for id in person.acknowledged]
    answers = [value for person in people for value in person.answers]
    tasks = [value for person in people for value in person.tasks]
    slowest = max(person.slowest for person in people)
    if load.locked and slowest > MOST_SECONDS:
        raise SystemExit(f"a request took {slowest:.1f} s, expected at most {MOST_SECONDS:g} s")
    with Store(folder / "feedback.sqlite") as store:
        written, items = store.judgements(), store.items("queue")
    check(acknowledged, [j.id for j in written], [j.item for j in written], [item.id for item in items])
    return Spent(acknowledged, answers, tasks, seconds, sum(person.refused for person in people), slowest)


def check(acknowledged: list[str], written: list[str], answered: list[str], asked: list[str]) -> None:
    """Exits if a run lost an answer or recorded one twice."""
    if lost := set(acknowledged) - set(written):
        raise SystemExit(f"{len(lost)} acknowledged answers are not in the log")
    if len(written) != len(acknowledged):
        raise SystemExit(f"{len(written)} answers in the log, {len(acknowledged)} acknowledged")
    if sorted(answered) != sorted(asked):
        raise SystemExit(f"{len(asked)} comparisons, {len(set(answered))} of them answered, {len(answered)} answers")


def tables(loads: list[Load], folder: Path) -> Iterator[list[Case]]:
    """Yields one table of all loads."""
    cases = []
    for number, load in enumerate(loads):
        (folder / str(number)).mkdir()
        spent = run(load, folder / str(number))
        points = statistics.quantiles(spent.answers, n=100, method="inclusive")
        cases.append(
            {
                "case": load.case,
                "people": load.people,
                "comparisons": load.comparisons,
                "pause s": load.pause,
                "answers/s": len(spent.answers) / spent.seconds,
                "p50 ms": points[49] * 1e3,
                "p95 ms": points[94] * 1e3,
                "p99 ms": points[98] * 1e3,
                "max ms": spent.slowest * 1e3,
                "refused": spent.refused,
                "next p50 ms": statistics.median(spent.tasks) * 1e3,
                "lost": 0,
                "doubled": 0,
            }
        )
    yield cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer comparisons")
    parser.add_argument("--folder", help="folder for the answers, which are deleted afterwards (default: temporary)")
    given = parser.parse_args()
    gc.freeze()  # what is imported here has no part in the answers, and to collect it takes long
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        cases = tables(QUICK_LOADS if given.quick else FULL_LOADS, Path(folder))
        report("annotate", cases, Settings(QUICK if given.quick else FULL, [torch.get_num_threads()], "cpu", []))


if __name__ == "__main__":
    main()
