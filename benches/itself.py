"""Comparison of an op with itself: on other data, in another layout, on more threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benches.bench import Case, Job, Settings, columns, facts, timed


def relative_time(about: Case, own: Job, others: dict[str, Job], settings: Settings) -> Case:
    """Times a job; its time per row is given as a multiple of that of the slowest other job."""
    times = timed(own, others, settings)
    cost = {name: times[name].median / job.work for name, job in others.items()}
    dearest = max(cost, key=lambda name: cost[name])
    ratio = times[""].median / own.work / cost[dearest]
    return about | columns(times[""]) | {"beside": dearest, "times as long": ratio}


def jagged_beside_dense(op: Callable, x: Tensor, y: Tensor, threads: int, settings: Settings) -> Iterator[Case]:
    """Compares jagged rows, of equal length and of 1 to 2 N - 1 values, with as many dense rows of N values."""
    rows, n = x.shape
    lengths = {"one length": torch.full((rows,), n), "1 to 2 N - 1": torch.randint(1, 2 * n, (rows,))}
    for name, length in lengths.items():
        limits = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
        values = torch.randn(2, int(limits[-1]), device=x.device)
        jagged = Job(partial(op, *values, offsets=limits.to(x.device)), rows)
        about = facts(f"jagged, {name}", x, threads, B=rows, N=n)
        yield relative_time(about, jagged, {"dense": Job(partial(op, x, y), rows)}, settings)


def more_threads(job: Job, about: Case, settings: Settings) -> Case:
    """Compares the largest number of threads with the smallest."""

    def on(threads: int) -> Job:
        def call() -> None:
            torch.set_num_threads(threads)
            job.function()

        return Job(call, job.work)

    fewest, most = settings.threads[0], settings.threads[-1]
    case = relative_time(about, on(most), {f"threads = {fewest}": on(fewest)}, settings)
    torch.set_num_threads(fewest)
    return case
