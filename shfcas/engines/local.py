"""The engine of one process."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from shfcas.engines.protocol import Result, Task, Tick, Worker

MOST_THREADS = 16  # tasks at once that load no model


class LocalEngine:
    """Does tasks in this process: one after another with a model, in threads without."""

    def map(
        self,
        make_worker: Callable[[], Worker[Task, Result]],
        tasks: Sequence[Task],
        tick: Tick = lambda count: None,
        model: bool = True,
    ) -> Iterator[Result]:
        """See `shfcas.engines.Engine`."""
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
        # Without a model, the time goes into reading and packing columns, which many threads can do.
        with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
            jobs = [threads.submit(worker, task, tick) for task in tasks]
            try:
                for job in jobs:
                    yield job.result()
            except BaseException:  # an interruption too: no further task is begun
                threads.shutdown(cancel_futures=True)
                raise
