"""The engine of a Ray cluster: actors that load a model once, and a queue of tasks that outlives any of them."""

import logging
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shfcas.engines.protocol import RayConfig, Result, Task, Tick, Worker
from shfcas.engines.ray_queue import TaskQueue
from shfcas.utils.errors import UserError

logger = logging.getLogger(__name__)

OBJECT_STORE = 1 << 28  # bytes of shared memory on a cluster of our own: tasks and results are small
# What a worker has to know as this process does; no secrets, since a cluster shows what actors are made with.
ENVIRONMENT = ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "SHFCAS_CACHE", "SHFCAS_TRUST_REMOTE_CODE")


class RayEngine:
    """Does tasks on a cluster.

    A worker that dies, alone or with its node, is replaced, and its task goes to whichever worker is free next. The
    files that tasks leave, and the models and inputs that they read, lie on storage that all nodes see under the same
    path.

    Args:
        settings: which cluster, and what a worker takes of it.
    """

    def __init__(self, settings: RayConfig) -> None:
        self.settings = settings
        self.connected = False
        self.queues: list[TaskQueue] = []
        self.spare: list[Any] = []  # actors without a model, for the next tasks that need none
        self.number = 0

    def __enter__(self) -> "RayEngine":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not ray.is_initialized():  # by a caller, whose connection is used and kept
            own = self.settings.address is None
            handler = signal.getsignal(signal.SIGTERM)
            try:
                _check_reachable(self.settings.address)
                ray.init(
                    # "local" rather than None, which the environment could turn into another address
                    address="local" if own else self.settings.address,
                    include_dashboard=False if own else None,
                    object_store_memory=OBJECT_STORE if own else None,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(
                    f"no Ray cluster at {self.settings.address or 'this machine'} ({reason}); start one with "
                    "`ray start --head`, or give --ray.address"
                ) from error
            self.connected = True
            if callable(handler) and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own exits without a message
        return self

    def __exit__(self, *exception: object) -> None:
        for queue in self.queues:  # of results that nobody has gone through to the end
            queue.close()
        self._end_spare()
        if self.connected:
            import ray

            ray.shutdown()
            self.connected = False

    def map(
        self,
        make_worker: Callable[[], Worker[Task, Result]],
        tasks: Sequence[Task],
        tick: Tick = lambda count: None,
        model: bool = True,
    ) -> Iterator[Result]:
        """See `shfcas.engines.Engine`.

        Raises:
            UserError: as the worker raised it; or a task's workers died `retries` times and once more, or none starts.
        """
        if not tasks:
            return
        import ray
        from ray import cloudpickle

        gpus = self._gpus(model)
        workers = min(len(tasks), self.settings.workers or self._room(gpus))
        logger.info("%d tasks on %d workers of the cluster", len(tasks), workers)
        actor = ray.remote(_Worker).options(
            num_cpus=self.settings.cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        made = ray.put(cloudpickle.dumps(make_worker))  # once, for all of them
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        threads = max(1, int(self.settings.cpus))

        def start() -> Any:
            return actor.remote(str(Path.cwd()), environment, threads)

        if model:  # which needs the cores that these hold
            self._end_spare()
        idle = [] if model else [self.spare.pop() for _ in range(min(workers, len(self.spare)))]
        self.number += 1
        retries, timeout = self.settings.retries, self.settings.start_timeout
        queue = TaskQueue(
            start, idle, make_worker=(self.number, made), tasks=tasks, workers=workers, retries=retries, timeout=timeout
        )
        self.queues.append(queue)
        finished = False
        try:
            for result, count in queue.results():
                tick(count)
                yield result
            finished = True
        finally:
            # A model is not kept: its GPU may be wanted for training.
            self.spare += queue.close(keep_idle=finished and not model)
            self.queues.remove(queue)

    def _end_spare(self) -> None:
        import ray

        for actor in self.spare:
            ray.kill(actor)
        self.spare = []

    def _gpus(self, model: bool) -> float:
        import ray

        if self.settings.gpus is not None:
            return self.settings.gpus if model else 0
        return 1 if model and ray.cluster_resources().get("GPU", 0) else 0

    def _room(self, gpus: float) -> int:
        """How many workers the whole cluster holds; at least one, which may have to wait for a node."""
        import ray

        resources = ray.cluster_resources()
        needed = {"CPU": self.settings.cpus, "GPU": gpus}
        rooms = [int(resources.get(name, 0) / amount) for name, amount in needed.items() if amount]
        return max(1, min(rooms, default=1))


def _check_reachable(address: str | None) -> None:
    """Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


class _Worker:
    """An actor: makes its worker when the first task comes, and does one task at a time."""

    def __init__(self, folder: str, environment: dict[str, str], threads: int) -> None:
        import torch

        os.environ.update(environment)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(threads)
        self.folder, self.number = folder, 0
        self.worker: Worker | None = None

    def begin(self) -> str | None:
        """Goes where the command was started, for its relative paths; returns what is wrong with this node."""
        try:
            os.chdir(self.folder)
            sys.path.append(self.folder)
        except OSError as error:
            return f"node {os.uname().nodename} cannot work in {self.folder} ({error.strerror})"
        return None

    def work(self, number: int, make_worker: bytes, task: Any) -> tuple[str | None, Any, int]:
        """What is wrong with the task, if anything; its result; how much of the bar is done."""
        done = 0

        def tick(count: int = 1) -> None:
            nonlocal done
            done += count

        try:
            if self.worker is None or self.number != number:
                # Made by `map` a moment ago, and brought by Ray, which sends this class as a pickle too. It is opened
                # here rather than by Ray so that a module that is missing on this node can be named.
                self.worker, self.number = pickle.loads(make_worker)(), number
            return None, self.worker(task, tick), done
        except ModuleNotFoundError as error:
            return f"node {os.uname().nodename} has no module {error.name}; install the same as here", None, done
        except UserError as error:  # as text: some have constructors of their own, which do not travel
            return str(error), None, done
