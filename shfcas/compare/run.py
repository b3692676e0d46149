"""`shfcas compare`: shared inputs are made once by the stages of a run, then cells, tables and a page."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from shfcas.compare.cells import Cell, ask
from shfcas.compare.config import CompareConfig
from shfcas.compare.grid import Record, cells_of, run_cells, tidy
from shfcas.compare.output import write_results
from shfcas.compare.policies import policies, policy_cells, train_one
from shfcas.compare.work import FEATURES, RunWork, prepare
from shfcas.pipeline.loop import Loop
from shfcas.pipeline.run import begin, refuse
from shfcas.pipeline.run_directory import Plan, RunDirectory
from shfcas.utils.config import to_dict
from shfcas.utils.files import remove

logger = logging.getLogger(__name__)


def compare(config: CompareConfig, *, approve: Callable[[Plan], bool] = refuse) -> Path:
    """Runs a comparison, or what a killed one still lacks, and returns the path of its page.

    Args:
        config: the configuration.
        approve: asked whether finished stages may be made again because something that they depend on changed. By
            default they may not.

    Raises:
        UserError, UsageError: see `shfcas.pipeline.run.begin`.
    """
    config.check_inputs()
    with RunDirectory(config.output, to_dict(config), config.seed) as directory:
        loop = Loop(directory, config)
        begin(loop, lambda: _stages(loop, config), approve)
        return _compared(loop, config)


def _compared(loop: Loop, config: CompareConfig) -> Path:
    """Makes the stages and the cells that are left, and writes the results."""
    directory, start = loop.run, loop.start()
    work = prepare(directory, loop, start.state, config)
    for name in config.strategies:  # fail early if a strategy lacks a column
        cell = Cell(name, max(config.budgets), 0)
        asked = len(ask(work.bench, work.bench.drawn(0), cell, work.selection(name)))
        if asked < cell.budget:
            logger.warning("%s: only %d comparisons pass its thresholds", cell, asked)
    remove(work.scratch)
    record = Record(directory.path / "cells.jsonl", work.inputs(), again=directory.approved)
    cells = cells_of(config.strategies, config.budgets, config.seeds)
    jobs = config.jobs or useful_jobs(config, len(cells))
    done = run_cells(cells, work, jobs=jobs, record=record, at_once=config.jobs or jobs_that_fit(config, work))
    rows = tidy(done)
    if config.ppo:
        rows += policies(loop, work, start)
    return write_results(directory.path, config, rows, done)


def _stages(loop: Loop, config: CompareConfig) -> None:
    """Makes all stages, or plans them; cells are no stages."""
    start = loop.start()
    work = prepare(loop.run, loop, start.state, config)
    for cell in policy_cells(config):
        train_one(loop, work, start, cell)


def useful_jobs(config: CompareConfig, cells: int) -> int:
    """Returns a number of processes: at most one per processor, few for heads, which take less time than a start.

    A resumed comparison gets the same number as a new one, and so the same results.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, 1 + cells // 500 if config.refine == "head" else cells))


def jobs_that_fit(config: CompareConfig, work: RunWork) -> int:
    """Returns the number of processes that fit into the free memory."""
    need = 0.7e9 + 3 * sum(f.stat().st_size for f in (work.path / FEATURES).glob("*.npy"))
    if config.refine == "full":
        folder = Path(str(work.state.reward_model))
        weights = sum(f.stat().st_size for f in folder.rglob("*.safetensors")) if folder.is_dir() else 4e9
        need += 6 * weights  # weights, gradients, two moments, activations, the scorer
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in os.sysconf_names else 0
    return max(1, int(free // need))
