"""What every bench shares: its arguments, its cases, the table and the line of JSON."""

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
    """What the command line asked for."""

    effort: Effort
    threads: list[int]
    device: str
    dtypes: list[torch.dtype]

    @property
    def quick(self) -> bool:
        return self.effort == QUICK


class Job(NamedTuple):
    """A function, and how many rows (pairs, sequences) one call of it does."""

    function: Callable[[], object]
    work: int
    bytes: int = 0
    """What it must read and write, of a function that is compared with the memory."""


def settings(description: str | None, dtypes: list[str], default: list[str]) -> Settings:
    """The command line; --quick takes the first of the default dtypes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short timings: under a minute")
    cores = [threads for threads in (1, 2) if threads <= (os.cpu_count() or 1)]
    parser.add_argument("--threads", type=int, nargs="+", default=cores, help=f"threads of torch (default: {cores})")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", nargs="+", choices=dtypes, help=f"default: {default}; with --quick the first")
    given = parser.parse_args()
    chosen = given.dtype or (default[:1] if given.quick else default)
    return Settings(
        QUICK if given.quick else FULL,
        sorted(set(given.threads)) if given.device == "cpu" else [1],
        given.device,
        [getattr(torch, name) for name in chosen],
    )


@functools.cache
def installed(name: str) -> bool:
    """Whether a rival is there; says once if not."""
    if importlib.util.find_spec(name) is None:
        print(f"{name.replace('_', '-')} is not installed and left out: pip install 'shfcas[bench]'")
        return False
    return True


def compiled(function: Callable) -> Callable:
    """The function through torch.compile; forgets those before, of which there may only be a few at a time."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def same(name: str, got: Any, expected: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Nothing is timed that does not compute the same."""

    def alike(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(alike, value))
        return torch.as_tensor(value).detach().cpu().double()

    torch.testing.assert_close(
        alike(got), alike(expected), rtol=rtol, atol=atol, equal_nan=True, msg=lambda text: f"{name}: {text}"
    )


def facts(name: str, x: Tensor, threads: int, **more: Any) -> Case:
    """What a case is called by."""
    return {"case": name, **more, "dtype": str(x.dtype).removeprefix("torch."), "threads": threads}


def against(about: Case, own: Job, rivals: dict[str, Job], settings: Settings, unit: str = "rows") -> Case:
    """The op beside its rivals: how much it does a second, and how many times as much as each of them.

    Beside a rival that has bytes it is bytes a second: the rival is the memory's speed, not another way.
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
    """All of them in turns; the name of the op is empty."""
    functions = {name: job.function for name, job in ({"": own} | others).items()}
    return timings(functions, settings.effort, settings.device)


def columns(time: Timing) -> Case:
    """What every table says of a time."""
    return {"ms": time.median * 1e3, "least ms": time.least * 1e3}


def _details(time: Timing, work: int) -> Case:
    return columns(time) | {"readings": time.readings, "work": work}


def report(bench: str, tables: Iterator[list[Case]], settings: Settings) -> None:
    """Prints each table when it is measured; the last line is all of it in JSON."""
    cases: list[Case] = []
    for table in tables:
        if table:
            print(table_of(table), flush=True)
            cases += table
    print(json.dumps(_rounded({"bench": bench, "machine": machine(settings), "cases": cases})))


def machine(settings: Settings) -> dict[str, Any]:
    """Processor, effort and versions, without which a time says nothing."""
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
    """One case a line, what is nested left out."""
    columns = shown_columns(cases)
    lines = [columns] + [[cell(case.get(name, "")) for name in columns] for case in cases]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in lines) + "\n"


def shown_columns(cases: list[Case]) -> list[str]:
    """All that any of the cases has, but for what is nested."""
    names = dict.fromkeys(name for case in cases for name, value in case.items() if not isinstance(value, dict))
    return list(names)


def cell(value: object) -> str:
    """Three digits of a number."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _rounded(value: Any) -> Any:
    """Four digits: what a clock gives has no more."""
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
