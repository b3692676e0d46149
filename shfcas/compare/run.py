"""`shfcas compare`: what all cells share is made once, as a run makes it; then the cells, then tables and a page."""

import logging
import os
from pathlib import Path

from shfcas.compare.cells import Cell, ask
from shfcas.compare.config import CompareConfig
from shfcas.compare.grid import Record, cells_of, run_cells, tidy
from shfcas.compare.output import write_results
from shfcas.compare.work import FEATURES, RunWork, prepare
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.run_directory import RunDirectory
from shfcas.utils.config import to_dict
from shfcas.utils.files import remove

logger = logging.getLogger(__name__)


def compare(config: CompareConfig) -> Path:
    """Runs a comparison, or what is left of it, and returns the path of its page."""
    directory = RunDirectory(config.output, to_dict(config.check()), config.seed)
    directory.begin()
    loop = Loop(directory, config)
    start = loop.start()
    work = prepare(directory, loop, start.state, config)
    for name in config.strategies:  # what a strategy lacks is said before anything is trained
        cell = Cell(name, max(config.budgets), 0)
        asked = len(ask(work.bench, work.bench.drawn(0), cell, work.selection(name)))
        if asked < cell.budget:
            logger.warning("%s: only %d comparisons pass its thresholds", cell, asked)
    remove(work.scratch)
    record = Record(directory.path / "cells.jsonl", work.inputs())
    cells = cells_of(config.strategies, config.budgets, config.seeds)
    jobs = config.jobs or useful_jobs(config, len(cells))
    done = run_cells(cells, work, jobs=jobs, record=record, at_once=config.jobs or jobs_that_fit(config, work))
    rows = tidy(done)
    if config.ppo:
        from shfcas.compare.policies import policies

        rows += policies(loop, work, start)
    return write_results(directory.path, config, rows, done)


def useful_jobs(config: CompareConfig, cells: int) -> int:
    """As many processes as there are processors; a process takes seconds to begin, and a head milliseconds.

    It is the same for a comparison that goes on as for one that begins, and so are the results.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, 1 + cells // 500 if config.refine == "head" else cells))


def jobs_that_fit(config: CompareConfig, work: RunWork) -> int:
    """As many processes as the memory that is free has room for."""
    need = 0.7e9 + 3 * sum(f.stat().st_size for f in (work.path / FEATURES).glob("*.npy"))
    if config.refine == "full":
        folder = Path(str(work.state.reward_model))
        weights = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) if folder.is_dir() else 4e9
        need += 6 * weights  # weights, gradients, two moments, activations, the scorer
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    return max(1, int(free // need))
