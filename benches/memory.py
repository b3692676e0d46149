"""Peak memory of a function beyond its arguments, including results, and its time."""

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
    """Measures the peak memory, in megabytes, of the function that `prepare(*large)` returns.

    `prepare(*small)` is called first, to load everything that a first call loads. On a CPU, this runs in a new process,
    so that the function cannot reuse memory freed by other code.
    """
    if device == "cuda":
        function = prepare(*large)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    return spent(prepare, small, large, threads).mb


class Spent(NamedTuple):
    """Time and memory of one call."""

    seconds: float
    mb: float  # peak, minus the memory before the call
    resident_mb: float  # peak of the whole process


def spent(prepare: Callable[..., Prepared], small: tuple, large: tuple, threads: int) -> Spent:
    """Measures time and memory, on the CPU, of the function that `prepare(*large)` returns; see `peak_mb`."""
    # Spawned, since a forked process would inherit this one's memory.
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
    """Resets the peak and returns the bytes in use; without support for a reset, returns the peak so far."""
    if sys.platform == "linux":
        # ru_maxrss does not work, since it starts with the peak of the parent process.
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
