"""Engine on a Ray cluster: actors that load a model once, and a task queue that survives lost actors."""

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

OBJECT_STORE = 1 << 28  # bytes of shared memory of a cluster started here: tasks and results are small
# Environment variables copied to workers. No secrets: a cluster displays the arguments of actors.
ENVIRONMENT = ("HF_HOME", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "SHFCAS_CACHE", "SHFCAS_TRUST_REMOTE_CODE")


class RayEngine:
    """Engine that runs tasks on a cluster.

    A worker that dies, alone or with its node, is replaced, and its task goes to the next free worker. All nodes must
    see outputs, models and inputs under the same paths, on shared storage.

    Args:
        settings: cluster address and resources of a worker.
    """

    def __init__(self, settings: RayConfig) -> None:
        self.settings = settings
        self.connected = False
        self.queues: list[TaskQueue] = []
        self.spare: list[Any] = []  # idle actors without a model, kept for the next tasks that need none
        self.number = 0

    def __enter__(self) -> "RayEngine":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if not ray.is_initialized():  # an existing connection of the caller is used and kept
            own = self.settings.address is None
            handler = signal.getsignal(signal.SIGTERM)
            try:
                _check_reachable(self.settings.address)
                ray.init(
                    # "local" rather than None, which environment variables could turn into another address
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
        for queue in self.queues:  # queues whose results were not read to the end
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
        """Yields the results of the tasks; see `shfcas.engines.Engine`.

        Raises:
            UserError: from the worker; or a task lost more than `retries` workers; or no worker starts.
        """
        if not tasks:
            return
        import ray
        from ray import cloudpickle

        gpus = self._gpus(model)
        workers = min(len(tasks), self.settings.workers or self._capacity(gpus))
        logger.info("%d tasks on %d workers of the cluster", len(tasks), workers)
        actor = ray.remote(_Worker).options(
            num_cpus=self.settings.cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD"
        )
        made = ray.put(cloudpickle.dumps(make_worker))  # once for all actors
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        threads = max(1, int(self.settings.cpus))

        def start() -> Any:
            return actor.remote(str(Path.cwd()), environment, threads)

        if model:  # needs the cores of the spare actors
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
            # Actors with a model are not kept: training may need their GPU.
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

    def _capacity(self, gpus: float) -> int:
        """Returns the number of workers that fit the cluster; at least one, which may wait for a node."""
        import ray

        resources = ray.cluster_resources()
        needed = {"CPU": self.settings.cpus, "GPU": gpus}
        workers = [int(resources.get(name, 0) / amount) for name, amount in needed.items() if amount]
        return max(1, min(workers, default=1))


def _check_reachable(address: str | None) -> None:
    """Fails early if the address is not reachable; Ray itself would retry for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


class _Worker:
    """Actor that creates its worker with the first task and runs one task at a time."""

    def __init__(self, folder: str, environment: dict[str, str], threads: int) -> None:
        import torch

        os.environ.update(environment)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        torch.set_num_threads(threads)
        self.folder, self.number = folder, 0
        self.worker: Worker | None = None

    def begin(self) -> str | None:
        """Changes to the folder of the command, for relative paths; returns an error message about this node."""
        try:
            os.chdir(self.folder)
            sys.path.append(self.folder)
        except OSError as error:
            return f"node {os.uname().nodename} cannot work in {self.folder} ({error.strerror})"
        return None

    def work(self, number: int, make_worker: bytes, task: Any) -> tuple[str | None, Any, int]:
        """Runs a task; returns an error message or None, the result, and the progress made."""
        done = 0

        def tick(count: int = 1) -> None:
            nonlocal done
            done += count

        try:
            if self.worker is None or self.number != number:
                # The pickle comes from `map` through Ray, which pickles this class too. It is loaded here rather
                # than by Ray, so that the error can name a module that is missing on this node.
                self.worker, self.number = pickle.loads(make_worker)(), number
            return None, self.worker(task, tick), done
        except ModuleNotFoundError as error:
            return f"node {os.uname().nodename} has no module {error.name}; install the same as here", None, done
        except UserError as error:  # as text: some subclasses have constructors that do not pickle
            return str(error), None, done
