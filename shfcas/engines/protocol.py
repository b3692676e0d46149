"""Protocol of engines and workers.

Work is a list of tasks, such as a shard of prompts to sample or a part of a table to score. A worker can run a task at
any time, and again, with the same result. An engine creates workers, assigns each task to one of them, and returns the
results in the order of the tasks. A worker renames finished files to their final names. So a task that started twice
leaves one file, and a finished task does not run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shfcas.utils.config import option
from shfcas.utils.errors import UserError

ENGINES = ("local", "ray")
Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[int], Any]  # called with the progress made, in steps of the progress bar
Worker = Callable[[Task, Tick], Result]


@dataclass
class RayConfig:
    """Settings of the Ray cluster and the resources of a worker; they do not change results."""

    address: str | None = option(
        None,
        "HOST:PORT of a cluster, or auto for the one this machine is in (none: a cluster of this machine alone)",
        volatile=True,
    )
    workers: int | None = option(
        None, "workers at once (none: as many as the cluster's cores or GPUs allow at the start)", volatile=True
    )
    cpus: float = option(1.0, "cores of a worker, and threads of its arithmetic", volatile=True)
    gpus: float | None = option(
        None, "GPUs of a worker that loads a model (none: 1 where the cluster has any, otherwise 0)", volatile=True
    )
    retries: int = option(3, "how often a task whose worker died is given to another one", volatile=True)
    start_timeout: float = option(600.0, "seconds to wait for a worker when there is none", volatile=True)

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"ray.workers: expected at least 1, got {self.workers}")
        if self.cpus < 0 or (self.gpus or 0) < 0 or self.retries < 0 or self.start_timeout <= 0:
            raise UserError("ray: expected cpus, gpus and retries of at least 0, and a start_timeout above 0")


class Engine(Protocol):
    """Protocol of engines, which run tasks on workers."""

    def map(
        self,
        make_worker: Callable[[], Worker[Task, Result]],
        tasks: Sequence[Task],
        tick: Tick = lambda count: None,
        model: bool = True,
    ) -> Iterator[Result]:
        """Yields the results, in the order of the tasks.

        Args:
            make_worker: called once per process, before its first task; loads what a worker needs. If the worker has
                a method `close`, a process that continues after the tasks calls it.
            tasks: tasks to run.
            tick: passed to the worker, which reports its progress.
            model: whether workers load a model. If so, a process runs one task at a time, and gets a GPU if there
                are any.

        Raises:
            UserError: from the worker.
        """
