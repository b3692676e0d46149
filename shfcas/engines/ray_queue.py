"""Task queue over actors that may die: lost tasks run again on other actors, and results come in order."""

import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

AHEAD = 4  # tasks per worker that may finish before the next result in order
SLOW = 30.0  # seconds without any worker before a warning


class TaskQueue:
    """Queue that assigns tasks to actors, one at a time each, and reassigns the task of an actor that died.

    An actor gets its first task after it has started, so an actor that waits for resources delays no task.

    Args:
        start: creates an actor with the methods of `shfcas.engines.ray._Worker`.
        idle: actors that have already started.
        make_worker: a number that identifies it, and the reference of its pickle, for the actors.
        tasks: tasks to run.
        workers: number of actors.
        retries: how often the task of a dead actor is reassigned.
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
        self.waiting = list(range(len(tasks)))  # a heap: lost tasks come before later ones
        self.lost: Counter[int] = Counter()
        self.failed_starts = 0
        self.idle = [*idle]
        self.actors = [*idle]  # all actors ever started
        self.running: dict[Any, tuple[Any, int | None]] = {}  # pending reference: the actor, and its task
        self.last_alive = time.monotonic()

    def results(self) -> Iterator[tuple[Any, int]]:
        """Yields each task's result, in order, and its progress.

        Raises:
            UserError: from a worker; or a task lost too many workers; or no worker starts.
        """
        for _ in range(self.workers - len(self.idle)):
            self._start()
        done: dict[int, tuple[Any, int]] = {}
        for following in range(len(self.tasks)):
            while following not in done:
                self._hand_out(following)
                done.update(self._await())
            self._hand_out(following)  # before the caller processes the result
            yield done.pop(following)

    def close(self, keep_idle: bool = False) -> list[Any]:
        """Ends all actors, including those not yet started, except idle ones if they are kept."""
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
        """Waits for actors; returns the results that arrived."""
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
                ray.kill(actor)  # if it is still alive but unreachable, it must not return
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
        """Records a dead actor and returns its task to the queue."""
        if task is None:
            self.failed_starts += 1
            if self.failed_starts > self.retries + self.workers:
                raise UserError(f"no worker starts on the cluster after {self.failed_starts} attempts ({reason})")
            return
        self.lost[task] += 1
        logger.warning("lost a worker; another one runs its task %d (%s)", task, reason[:120])
        if self.lost[task] > self.retries:
            raise UserError(
                f"task {task} of {len(self.tasks)} ran on {self.lost[task]} workers, and each of them died "
                f"({reason}); if memory is short, lower batch_size or raise --ray.cpus, so that fewer share a node"
            )
        heapq.heappush(self.waiting, task)

    def _check_alive(self) -> None:
        """Warns while there are no workers, and raises UserError after the timeout."""
        now = time.monotonic()
        if self.idle or any(task is not None for _, task in self.running.values()):
            self.last_alive = now
            return
        waited = now - self.last_alive
        if waited > self.timeout:
            raise UserError(
                f"no worker has started in {waited:.0f} s: the cluster has no free resources for one; request less "
                "with --ray.cpus and --ray.gpus, or add nodes"
            )
        if waited > SLOW and (waited - 1) % SLOW < 1:
            logger.warning("no worker yet after %.0f s: waiting for free resources in the cluster", waited)
