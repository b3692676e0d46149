"""Clock: functions are timed in turns, so that a slowdown of the machine affects all of them equally."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SHORTEST = 1e-3  # minimum seconds of one reading; faster functions are called in batches


class Effort(NamedTuple):
    """Duration of a measurement."""

    seconds: float  # per function, over all rounds
    rounds: int  # each round reads every function at least once, regardless of its duration


QUICK, FULL = Effort(0.04, 2), Effort(1.0, 5)


class Timing(NamedTuple):
    """Seconds per call."""

    median: float
    least: float
    readings: int


def timings(functions: dict[str, Callable[[], object]], effort: Effort, device: str) -> dict[str, Timing]:
    """Times functions by name: each is called to warm up, then all are read round by round."""
    batches = {name: _batch(function, device) for name, function in functions.items()}
    readings: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(effort.rounds):
        for name, function in functions.items():
            left = effort.seconds / effort.rounds
            while True:
                readings[name].append(_seconds(function, batches[name], device))
                left -= readings[name][-1] * batches[name]
                if left <= 0:
                    break
    return {name: Timing(statistics.median(times), min(times), len(times)) for name, times in readings.items()}


def _batch(function: Callable[[], object], device: str) -> int:
    """Returns the number of calls for one reading of at least the minimum time; this also warms up."""
    calls = 1
    if _seconds(function, calls, device) > 1:
        return calls
    while (taken := calls * _seconds(function, calls, device)) < SHORTEST:
        calls = max(2 * calls, math.ceil(1.2 * calls * SHORTEST / max(taken, 1e-9)))
    return calls


def _seconds(function: Callable[[], object], calls: int, device: str) -> float:
    """Returns the seconds per call; on a GPU, until the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls
