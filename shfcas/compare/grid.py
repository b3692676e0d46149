"""All cells of a comparison: run in any order, in several processes, skipping finished cells."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shfcas.compare.cells import NONE, Bench, Cell, RefineHead, run_cell
from shfcas.compare.heads import torch_threads
from shfcas.selection import SelectionConfig
from shfcas.utils.config import differences, to_dict
from shfcas.utils.errors import UserError
from shfcas.utils.files import disk_errors, nan_for_null, to_json
from shfcas.utils.progress import progress

Work = Callable[[Cell], dict[str, Any]]


def cells_of(strategies: Sequence[str], budgets: Sequence[int], seeds: int) -> list[Cell]:
    """Returns all cells, seed by seed; the first cell of each seed is the one without labels."""
    return [
        cell
        for seed in range(seeds)
        for cell in (Cell(NONE, 0, seed), *(Cell(name, budget, seed) for budget in budgets for name in strategies))
    ]


@dataclass(frozen=True)
class BenchWork:
    """Work on a bench in memory, with strategies by the caller's own names."""

    bench: Bench
    arms: Mapping[str, SelectionConfig]

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Runs a cell."""
        return run_cell(self.bench, cell, self.arms.get(cell.strategy, SelectionConfig()))


def run_grid(
    bench: Bench,
    arms: Mapping[str, SelectionConfig],
    *,
    budgets: Sequence[int],
    seeds: int,
    jobs: int = 1,
    record: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Runs arms x budgets x seeds, and the arm `none` for each seed, on a bench.

    Args:
        bench: see `head_bench`.
        arms: selection settings by name; each arm's budget is set from `budgets`.
        budgets: numbers of comparisons.
        seeds: number of seeds.
        jobs: number of processes.
        record: a file of finished cells, from which an interrupted call resumes. Budgets and seeds may be added; a
            file from another bench or other settings raises UserError.

    Returns:
        Tidy rows: `strategy`, `budget`, `seed`, `metric`, `group`, `value`.
    """
    cells = cells_of(list(arms), budgets, seeds)
    known = None
    if record:
        known = Record(record, {"bench": _hash(bench), "arms": {name: to_dict(arm) for name, arm in arms.items()}})
    return tidy(run_cells(cells, BenchWork(bench, arms), jobs=jobs, record=known))


def _hash(bench: Bench) -> str:
    """Returns a hash of all parts of a bench."""
    options = (bench.group_by, list(bench.blind), bench.pool_share, bench.label_noise, bench.seed)
    found = hashlib.sha256(json.dumps(options).encode())
    arrays: list[Any] = []
    for answers in (bench.pool, bench.held_out):
        found.update(json.dumps([answers.rows, answers.table.metadata], sort_keys=True, default=str).encode())
        arrays += [answers.gold, answers.features]
    if isinstance(bench.refine, RefineHead):
        fit = bench.refine.fit
        arrays += [fit.old, fit.margins, fit.centre, fit.scale, fit.l2, bench.refine.new_pair_weight]
    else:
        found.update(str(bench.refine).encode())
    for array in arrays:
        found.update(np.ascontiguousarray(array, float).tobytes())
    return found.hexdigest()[:16]


def tidy(done: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per cell and metric, in an order that does not depend on the order of the runs."""
    ordered = sorted(done, key=lambda cell: (cell["strategy"], cell["budget"], cell["seed"]))
    return [
        {"strategy": cell["strategy"], "budget": cell["budget"], "seed": cell["seed"], **metric}
        for cell in ordered
        for metric in cell["metrics"]
    ]


class Record:
    """Append-only file of finished cells: JSON lines, each flushed to disk before the next cell.

    Args:
        path: the file.
        inputs: inputs of the cells; a file with other inputs raises UserError.
        again: empty a file with other inputs instead, so that its cells are run again.
    """

    def __init__(self, path: str | Path, inputs: dict[str, Any] | None = None, again: bool = False) -> None:
        self.path, head = Path(path), {"inputs": inputs or {}}
        self.done: dict[Cell, dict[str, Any]] = {}
        with disk_errors(str(self.path)):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_partial_line()
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            before = json.loads(lines[0])["inputs"] if lines else {}
            changed = differences(before, json.loads(json.dumps(head))["inputs"]) if lines else []
            if changed and again:
                self.path.unlink()
                lines = []
            if not lines:
                self._append(head)
            elif changed:
                raise UserError(
                    f"{self.path} holds cells that were made otherwise ({'; '.join(changed)}); undo that, delete the "
                    "file to run them again, or name a new folder with --output"
                )
        for line in lines[1:]:
            cell = nan_for_null(json.loads(line))
            self.done[Cell(cell["strategy"], cell["budget"], cell["seed"])] = cell

    def add(self, done: dict[str, Any]) -> None:
        """Records one cell, durably."""
        with disk_errors(str(self.path)):
            self._append(done)
        self.done[Cell(done["strategy"], done["budget"], done["seed"])] = done

    def _append(self, value: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(to_json(value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _drop_partial_line(self) -> None:
        """Removes an incomplete last line, left by a kill or a full disk."""
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self.path, whole)


def run_cells(
    cells: Sequence[Cell], work: Work, *, jobs: int = 1, record: Record | None = None, at_once: int | None = None
) -> list[dict[str, Any]]:
    """Runs cells that are not recorded yet, in one or several processes; returns all cells in their order.

    Args:
        cells: cells to return.
        work: function that runs one cell; with several jobs it is pickled once per process.
        jobs: number of processes; they share torch's threads.
        record: record of finished cells.
        at_once: maximum number of concurrent processes, if memory limits it. The threads per process do not depend on
            it, nor on the number of remaining cells: sums with another number of threads round differently.
    """
    done = dict(record.done) if record else {}
    missing = [cell for cell in cells if cell not in done]

    def finished(result: dict[str, Any]) -> None:
        done[Cell(result["strategy"], result["budget"], result["seed"])] = result
        if record:
            record.add(result)

    threads = max(1, torch.get_num_threads() // max(1, jobs))
    jobs = min(jobs, at_once or jobs, len(missing))
    if jobs <= 1:
        with torch_threads(threads):
            for cell in progress(missing, "cells"):
                finished(work(cell))
    else:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        with ProcessPoolExecutor(jobs, context, _begin, (work, threads)) as workers:
            running = [workers.submit(_work, cell) for cell in missing]
            try:
                for future in progress(as_completed(running), "cells", len(running)):
                    finished(future.result())
            except BaseException:  # also KeyboardInterrupt: start no further cell
                workers.shutdown(wait=False, cancel_futures=True)
                raise
    return [done[cell] for cell in cells]


_shared: Work | None = None


def _begin(work: Work, threads: int) -> None:
    global _shared
    torch.set_num_threads(threads)
    _shared = work


def _work(cell: Cell) -> dict[str, Any]:
    assert _shared is not None
    return _shared(cell)
