"""What every bench shares: the clock, the machine's description, the table."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import torch

import shfcas


def seconds_per_call(function: Callable[[], object], budget: float) -> float:
    """Median time of a call, after one to warm up: three calls, or as many more as the budget allows."""
    function()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def machine() -> dict[str, object]:
    """Processor, threads and versions, without which a time says nothing."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "shfcas": shfcas.__version__,
        "build": shfcas.build_facts(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def print_table(cases: list[dict[str, object]]) -> None:
    """One case a line."""
    columns = list(cases[0])
    widths = [max(len(name), *(len(_cell(case[name])) for case in cases)) for name in columns]
    for row in [dict(zip(columns, columns, strict=True)), *cases]:
        print("  ".join(_cell(row[c]).rjust(w) for c, w in zip(columns, widths, strict=True)))
    print(flush=True)


def print_json(bench: str, cases: list[dict[str, object]]) -> None:
    """The last line of a bench: all there is to know, for a program to read."""
    print(json.dumps({"bench": bench, "machine": machine(), "cases": cases}))


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
