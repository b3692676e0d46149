"""A queue of tasks over actors that may die: each task is done by one that lives, and results come in order."""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

AHEAD = 4  # tasks per worker that may be done before the one whose result is awaited
SLOW = 30.0  # seconds without any worker after which one is told so


class TaskQueue:
    """Gives tasks to actors, one at a time each, and again to another one where an actor has died.

    An actor gets its first task when it has started, so what waits for room in the cluster holds no task back.

    Args:
        start: makes an actor with the methods of `shfcas.engines.ray._Worker`.
        idle: actors that have started already.
        make_worker: a number that tells it from others, and the reference of its pickle, for the actors.
        tasks: what is to be done.
        workers: how many actors there are to be.
        retries: how often a task whose actor died is given to another one.
        timeout: seconds to wait for an actor while there is none.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        idle: Sequence[Any],
        *,
        make_worker: tuple[int, Any],
        tasks: Sequence[Any],
        workers: int,
        retries: int,
        timeout: float,
    ) -> None:
        self.start, self.make_worker, self.tasks, self.workers = start, make_worker, tasks, workers
        self.retries, self.timeout = retries, timeout
        self.waiting = list(range(len(tasks)))  # a heap: what was lost goes before what is new
        self.lost: Counter[int] = Counter()
        self.failed_starts = 0
        self.idle = [*idle]
        self.actors = [*idle]  # all that there ever were
        self.running: dict[Any, tuple[Any, int | None]] = {}  # by what is awaited: the actor, and its task
        self.last_alive = time.monotonic()

    def results(self) -> Iterator[tuple[Any, int]]:
        """Each task's result, in order, and how much of the progress bar it stands for.

        Raises:
            UserError: as a worker raised it; a task has outlived too many workers; no worker starts.
        """
        for _ in range(self.workers - len(self.idle)):
            self._start()
        done: dict[int, tuple[Any, int]] = {}
        for following in range(len(self.tasks)):
            while following not in done:
                self._hand_out(following)
                done.update(self._await())
            self._hand_out(following)  # before the caller takes its time with the result
            yield done.pop(following)

    def close(self, keep_idle: bool = False) -> list[Any]:
        """Ends all actors, also those that have not started, but for the idle ones if they are kept."""
        import ray

        kept = self.idle if keep_idle else []
        for actor in self.actors:
            if actor not in kept:
                ray.kill(actor)
        self.actors, self.idle, self.running = [], [], {}
        return kept

    def _start(self) -> None:
        actor = self.start()
        self.actors.append(actor)
        self.running[actor.begin.remote()] = actor, None

    def _hand_out(self, following: int) -> None:
        while self.idle and self.waiting and self.waiting[0] < following + AHEAD * self.workers:
            actor, task = self.idle.pop(), heapq.heappop(self.waiting)
            self.running[actor.work.remote(*self.make_worker, self.tasks[task])] = actor, task

    def _await(self) -> dict[int, tuple[Any, int]]:
        """Waits until something has happened; the results that came."""
        import ray
        from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

        ready, _ = ray.wait(list(self.running), timeout=1)
        if not ready:
            self._check_alive()
        done = {}
        for reference in ready:
            actor, task = self.running.pop(reference)
            try:
                outcome = ray.get(reference)
            except (RayActorError, WorkerCrashedError, OutOfMemoryError, ObjectLostError) as error:
                ray.kill(actor)  # if it lives after all, out of reach, it must not come back
                self._lose(task, " ".join(str(error).split())[:300])
                self._start()
                continue
            self.last_alive = time.monotonic()
            if task is None:
                if outcome is not None:
                    raise UserError(f"{outcome}; all nodes need the same storage under the same path")
                self.failed_starts = 0
            else:
                problem, result, count = outcome
                if problem is not None:
                    raise UserError(problem)
                done[task] = result, count
            self.idle.append(actor)
        return done

    def _lose(self, task: int | None, reason: str) -> None:
        """Counts a dead actor; its task waits again."""
        if task is None:
            self.failed_starts += 1
            if self.failed_starts > self.retries + self.workers:
                raise UserError(f"no worker starts on the cluster, after {self.failed_starts} tries ({reason})")
            return
        self.lost[task] += 1
        logger.warning("a worker was lost; its task %d is given to another one (%s)", task, reason[:120])
        if self.lost[task] > self.retries:
            raise UserError(
                f"task {task} of {len(self.tasks)} was given to {self.lost[task]} workers, and each of them died "
                f"({reason}); if memory is short, lower batch_size or raise --ray.cpus, so that fewer share a node"
            )
        heapq.heappush(self.waiting, task)

    def _check_alive(self) -> None:
        """Says that there are no workers, and gives up after a time."""
        now = time.monotonic()
        if self.idle or any(task is not None for _, task in self.running.values()):
            self.last_alive = now
            return
        waited = now - self.last_alive
        if waited > self.timeout:
            raise UserError(
                f"no worker has started in {waited:.0f} s: the cluster has no room for one; ask for less with "
                "--ray.cpus and --ray.gpus, or add nodes"
            )
        if waited > SLOW and (waited - 1) % SLOW < 1:
            logger.warning("no worker yet after %.0f s: waiting for room in the cluster", waited)
