"""Protocol of engines and workers.

Work is a list of tasks, such as a shard of prompts to sample or a part of a table to score. A worker can run a task at
any time, and again, with the same result. An engine creates workers, assigns each task to one of them, and returns the
results in the order of the tasks. A worker renames finished files to their final names. So a task that started twice
leaves one file, and a finished task does not run again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shfcas.utils.config import Options, option

ENGINES = ("local", "ray")
Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[int], Any]  # called with the progress made, in steps of the progress bar
Worker = Callable[[Task, Tick], Result]


@dataclass
class RayConfig(Options):
    """A Ray cluster and the resources of a worker; results do not depend on them."""

    address: str | None = option(
        None,
        "HOST:PORT of a cluster, or auto for the cluster of this machine (none: a cluster of this machine alone)",
        volatile=True,
    )
    workers: int | None = option(
        None, "maximum workers at the same time (none: as many as free cores or GPUs allow)", volatile=True, ge=1
    )
    cpus: float = option(1.0, "cores per worker, and threads of its arithmetic", volatile=True, ge=0)
    gpus: float | None = option(
        None, "GPUs per worker that loads a model (none: 1 if the cluster has any, else 0)", volatile=True, ge=0
    )
    retries: int = option(3, "maximum retries of a task whose worker died", volatile=True, ge=0)
    start_timeout: float = option(600.0, "seconds to wait for a worker while there is none", volatile=True, gt=0)


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
