"""Where the work is done: in this process, or on a Ray cluster, with the same results.

Work is a list of tasks, each of which a worker can do at any time, and again, with the same result: a shard of prompts
to sample, a part of a table to score. An engine makes workers, gives each task to one of them, and returns the results
in the order of the tasks. A worker writes files under their final names by renaming, so a task that was begun twice
leaves one file, and one that is found done is not done again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from shfcas.utils.config import Options, option

ENGINES = ("local", "ray")
Task = TypeVar("Task")
Result = TypeVar("Result")
Tick = Callable[[int], Any]  # told how much of a progress bar is done
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
    """Anything that can have tasks done by workers."""

    def map(
        self,
        make_worker: Callable[[], Worker[Task, Result]],
        tasks: Sequence[Task],
        tick: Tick = lambda count: None,
        model: bool = True,
    ) -> Iterator[Result]:
        """Yields the tasks' results, in the order of the tasks.

        Args:
            make_worker: called once in each process, when it gets its first task; loads what a worker needs. If a
                worker has a method `close`, a process that goes on afterwards calls it.
            tasks: what is to be done.
            tick: handed to the worker, which says how much it has done.
            model: whether workers load a model. If so, a process does one task at a time, and gets a GPU where
                there are any.

        Raises:
            UserError: as the worker raised it.
        """
