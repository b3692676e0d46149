"""Code shared by all benches: arguments, cases, tables and the line of JSON."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

import shfcas
from benches.clock import FULL, QUICK, Effort, Timing, timings

Case = dict[str, Any]
RIVALS = ("hyper-corr", "pandas", "scipy", "torchmetrics", "trl")


class Settings(NamedTuple):
    """Settings of the command line."""

    effort: Effort
    threads: list[int]
    device: str
    dtypes: list[torch.dtype]

    @property
    def quick(self) -> bool:
        return self.effort == QUICK


class Job(NamedTuple):
    """Function with the number of rows (pairs, sequences) that one call processes."""

    function: Callable[[], object]
    work: int
    bytes: int = 0
    """Bytes that it must read and write, if it is compared with the memory bandwidth."""


def settings(description: str | None, dtypes: list[str], default: list[str]) -> Settings:
    """Parses the command line; --quick uses the first of the default dtypes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short timings: under a minute")
    cores = [threads for threads in (1, 2) if threads <= (os.cpu_count() or 1)]
    parser.add_argument("--threads", type=int, nargs="+", default=cores, help=f"threads of torch (default: {cores})")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=dtypes, help=f"default: {default}; with --quick the first")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: no CUDA device (torch {torch.__version__})")
    chosen = given.dtype or (default[:1] if given.quick else default)
    return Settings(
        QUICK if given.quick else FULL,
        sorted(set(given.threads)) if given.device == "cpu" else [1],
        given.device,
        [getattr(torch, name) for name in chosen],
    )


@functools.cache
def installed(name: str) -> bool:
    """Returns whether a rival is installed; prints a message once if not."""
    if importlib.util.find_spec(name) is None:
        print(f"skipping {name.replace('_', '-')}, which is not installed: pip install 'shfcas[bench]'")
        return False
    return True


def compiled(function: Callable) -> Callable:
    """Compiles a function with torch.compile; resets the compiler first, which limits the number of functions."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def check_same(name: str, got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Checks that a rival computes the same result, before anything is timed."""

    def alike(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(alike, value))
        return torch.as_tensor(value).detach().cpu().double()

    torch.testing.assert_close(
        alike(got), alike(expected), rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def facts(name: str, x: Tensor, threads: int, **more: Any) -> Case:
    """Returns the facts that identify a case."""
    return {"case": name, **more, "dtype": str(x.dtype).removeprefix("torch."), "threads": threads}


def compare(about: Case, own: Job, rivals: dict[str, Job], settings: Settings, unit: str = "rows") -> Case:
    """Times the op and its rivals: rows per second, and the ratio to each rival.

    For a rival with bytes, the ratio is that of bytes per second: it measures memory bandwidth.
    """
    times = timed(own, rivals, settings)
    own_time = times.pop("")
    case = about | columns(own_time) | {f"{unit}/s": own.work / own_time.median}
    for name, rival in rivals.items():
        column, mine, theirs = (
            (f"of {name}", own.bytes, rival.bytes) if rival.bytes else (f"x {name}", own.work, rival.work)
        )
        case[column] = mine / own_time.median / (theirs / times[name].median)
    details = {name: _details(time, rivals[name].work) for name, time in times.items()}
    return case | {"own": _details(own_time, own.work), "rivals": details}


def timed(own: Job, others: dict[str, Job], settings: Settings) -> dict[str, Timing]:
    """Times all jobs in turns; the name of the op is empty."""
    functions = {name: job.function for name, job in ({"": own} | others).items()}
    return timings(functions, settings.effort, settings.device)


def columns(time: Timing) -> Case:
    """Returns the columns of a time in every table."""
    return {"ms": time.median * 1e3, "least ms": time.least * 1e3}


def _details(time: Timing, work: int) -> Case:
    return columns(time) | {"readings": time.readings, "work": work}


def report(bench: str, tables: Iterator[list[Case]], settings: Settings) -> None:
    """Prints each table as soon as it is measured; the last line is all results as JSON."""
    cases: list[Case] = []
    for table in tables:
        if table:
            print(table_of(table), flush=True)
            cases += table
    print(json.dumps(_rounded({"bench": bench, "machine": machine(settings), "cases": cases})))


def machine(settings: Settings) -> dict[str, Any]:
    """Returns processor, effort and versions, which a time needs for its interpretation."""
    return {
        "device": settings.device,
        "gpu": torch.cuda.get_device_name() if settings.device == "cuda" else "",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "quick": settings.quick,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "shfcas": shfcas.__version__,
        "build": shfcas.build_facts(),
        "rivals": {name: _version(name) for name in RIVALS},
    }


def table_of(cases: list[Case]) -> str:
    """Formats one case per line, without nested values."""
    columns = shown_columns(cases)
    lines = [columns] + [[cell(case.get(name, "")) for name in columns] for case in cases]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in lines) + "\n"


def shown_columns(cases: list[Case]) -> list[str]:
    """Returns the union of the cases' columns, without nested values."""
    names = dict.fromkeys(name for case in cases for name, value in case.items() if not isinstance(value, dict))
    return list(names)


def cell(value: object) -> str:
    """Formats a number with three digits."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: Any) -> Any:
    """Rounds to four digits, the precision of the clock."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
