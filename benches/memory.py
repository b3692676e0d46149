"""How much memory a function needs beyond its arguments, results included; and how long it takes meanwhile."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

Prepared = Callable[[], object]


def peak_mb(prepare: Callable[..., Prepared], small: tuple, large: tuple, threads: int, device: str) -> float:
    """Megabytes at the peak of the function that `prepare(*large)` returns.

    `prepare(*small)` is called first, for what the first call of anything loads. On a CPU all of it happens in a
    fresh process, so that no memory which something else has left free is used again unseen.
    """
    if device == "cuda":
        function = prepare(*large)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return spent(prepare, small, large, threads).mb


class Spent(NamedTuple):
    """What one call took."""

    seconds: float
    mb: float  # at the peak, beyond what was there before it
    resident_mb: float  # at the peak, with all of Python


def spent(prepare: Callable[..., Prepared], small: tuple, large: tuple, threads: int) -> Spent:
    """Time and memory, on the CPU, of the function that `prepare(*large)` returns; see `peak_mb`."""
    # Not forked: a process that is would begin with this one's memory.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_spent_here, prepare, small, large, threads).result()


def _spent_here(prepare: Callable[..., Prepared], small: tuple, large: tuple, threads: int) -> Spent:
    torch.set_num_threads(threads)
    prepare(*small)()
    function = prepare(*large)
    before, begin = _reset_peak(), time.perf_counter()
    function()
    seconds, peak = time.perf_counter() - begin, _peak()
    return Spent(seconds, (peak - before) / 1e6, peak / 1e6)


def _reset_peak() -> int:
    """Bytes in use now, from where the peak starts anew; where that cannot be, the peak so far."""
    if sys.platform == "linux":
        # ru_maxrss will not do: it begins with the peak of the parent process.
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
