"""Engine that runs tasks in this process."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from shfcas.engines.protocol import Result, Task, Tick, Worker

MOST_THREADS = 16  # concurrent tasks that load no model


class LocalEngine:
    """Engine of this process: tasks run one after another with a model, and in threads without one."""

    def map(
        self,
        make_worker: Callable[[], Worker[Task, Result]],
        tasks: Sequence[Task],
        tick: Tick = lambda count: None,
        model: bool = True,
    ) -> Iterator[Result]:
        """Yields the results of the tasks; see `shfcas.engines.Engine`."""
        if not tasks:
            return
        worker = make_worker()
        if model:
            try:
                for task in tasks:
                    yield worker(task, tick)
            finally:
                getattr(worker, "close", lambda: None)()
            return
        # Without a model, most time is spent reading and packing columns, which runs in parallel threads.
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
            jobs = [threads.submit(worker, task, tick) for task in tasks]
            try:
                for job in jobs:
                    yield job.result()
            except BaseException:  # also KeyboardInterrupt: start no further task
                threads.shutdown(cancel_futures=True)
                raise
