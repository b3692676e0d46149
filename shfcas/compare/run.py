"""`shfcas compare`: what all cells share is made once, as a run makes it; then the cells, then tables and a page."""

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.candidates import read_candidates, write_candidates
from shfcas.compare.answers import AnswerSet
from shfcas.compare.cells import Bench, Cell, Label, ask, head_bench, run_cell
from shfcas.compare.frozen import FrozenModel
from shfcas.compare.grid import Record, cells_of, run_cells, tidy
from shfcas.compare.output import write_results
from shfcas.compare.settings import CompareConfig
from shfcas.config import to_dict
from shfcas.feedback.schema import make_preference
from shfcas.files import content_hash, remove, write_text
from shfcas.preferences import Preference, merge, read_preferences
from shfcas.rounds import Loop, State
from shfcas.scoring import load_scorer, score_rows
from shfcas.stages import RunDirectory, StageContext
from shfcas.training.reward import train_reward_model
from shfcas.training.reward_data import held_out_prompts, split, weighted

logger = logging.getLogger(__name__)

POOL, HELD_OUT, FEATURES = "pool.parquet", "round-0/evaluation.parquet", "features"


def compare(config: CompareConfig) -> Path:
    """Runs a comparison, or what is left of it, and returns the path of its page."""
    import yaml

    directory = RunDirectory(config.output, config.check().shared(), config.seed)
    write_text(directory.path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    loop = Loop(directory, config)
    start = loop.start(loop.prepare())
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
    done = run_cells(cells, work, jobs, record, config.jobs or jobs_that_fit(config, work))
    rows = tidy(done)
    if config.ppo:
        from shfcas.compare.policies import policies

        rows += policies(loop, work, start)
    return write_results(directory.path, config, rows, done)


def prepare(directory: RunDirectory, loop: Loop, state: State, config: CompareConfig) -> "RunWork":
    """The pool with gold rewards and, for heads, features: made once, for all cells."""
    conflicts = loop.conflicts(state, "round-1")

    def add_gold(context: StageContext) -> None:
        table = read_candidates(conflicts)
        write_candidates(context.output, table.with_columns(gold=score_rows(loop.gold, table.rows())))

    directory.stage(POOL, add_gold, {"conflicts": conflicts, "gold": config.gold})
    if config.refine == "head":
        inputs = {"pool": directory.path / POOL, "held_out": directory.path / HELD_OUT}
        earlier = {f"preferences_{i}": path for i, path in enumerate(state.preferences)}
        directory.stage(
            FEATURES,
            lambda c: write_features(c.output, directory.path, state, config),
            {**inputs, **earlier, "reward_model": state.reward_model, "backbone": config.backbone() or ""},
        )
    return RunWork(directory.path, config, state)


def write_features(output: Path, run: Path, state: State, config: CompareConfig) -> None:
    """What the reward model's head reads of all texts, its weights, and the earlier pairs, as .npy files."""
    model = FrozenModel(str(state.reward_model), config.cost_model, config.backbone())
    output.mkdir(parents=True)
    for name, path in (("pool", run / POOL), ("held_out", run / HELD_OUT)):
        rows = read_candidates(path).rows()
        prompts = [row["prompt"] for row in rows for _ in row["completions"]]
        texts = [text for row in rows for text in row["completions"]]
        np.save(output / f"{name}.npy", model.features(prompts, texts))
    pairs = merge(*(read_preferences(path) for path in state.preferences))
    differences, margins = model.differences(pairs) if pairs else (np.zeros((0, len(model.head.weight))), np.zeros(0))
    arrays = {"earlier": differences, "margins": margins, "head": model.head.weight}
    for name, array in arrays.items():
        np.save(output / f"{name}.npy", array)


@dataclass(frozen=True)
class RunWork:
    """The cells of a run directory; each process loads what they share once.

    Attributes:
        path: the run directory.
        config: the comparison's configuration.
        state: the models before any label.
    """

    path: Path
    config: CompareConfig
    state: State

    def __call__(self, cell: Cell) -> dict[str, Any]:
        """Runs a cell."""
        return run_cell(self.bench, cell, self.selection(cell.strategy))

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: not the tables."""
        return {"path": self.path, "config": self.config, "state": self.state}

    def selection(self, strategy: str) -> Any:
        """The settings of a strategy."""
        settings = self.config.selection
        return replace(settings, strategy=strategy) if strategy in self.config.strategies else settings

    @property
    def scratch(self) -> Path:
        """Where models are trained; nothing in it outlives its cell."""
        return self.path / ".cells"

    def inputs(self) -> dict[str, Any]:
        """What the cells are made from, by content."""
        found: dict[str, Any] = {"pool": content_hash(self.path / POOL), "held_out": content_hash(self.path / HELD_OUT)}
        if self.config.refine == "head":
            found["features"] = content_hash(self.path / FEATURES)
        return found

    @cached_property
    def bench(self) -> Bench:
        """What all cells share."""
        config = self.config
        options: dict[str, Any] = {
            "group_by": config.evaluation.group_by,
            "blind": config.blind or (),
            "pool_share": config.pool_share,
            "label_noise": config.label_noise,
            "seed": config.seed,
        }
        tables = [read_candidates(self.path / name) for name in (POOL, HELD_OUT)]
        if config.refine == "full":
            pool, held_out = (AnswerSet.from_table(table) for table in tables)
            return Bench(pool, held_out, RefineFull(self, pool, held_out), **options)
        names = ("pool", "held_out", "earlier", "head", "margins")
        arrays = {name: np.load(self.path / FEATURES / f"{name}.npy") for name in names}
        pool, held_out = (
            AnswerSet.from_table(table, arrays[name]) for name, table in zip(("pool", "held_out"), tables, strict=True)
        )
        return head_bench(
            pool,
            held_out,
            arrays["earlier"],
            arrays["head"],
            config.l2,
            config.reward.new_pair_weight,
            arrays["margins"],
            **options,
        )

    def preferences(self, pool: AnswerSet, labels: Sequence[Label]) -> list[Preference]:
        """Labels as records."""
        found = []
        for label in labels:
            row, first = pool.rows[label.prompt], int(pool.offsets[label.prompt])
            chosen, rejected = label.chosen - first, label.rejected - first
            found.append(make_preference(row, chosen, rejected, "gold", self.config.gold, round=1))
        return found

    def train(self, preferences: Sequence[Preference], output: Path, work_dir: Path, seed: int) -> None:
        """Refines the full model, as a run does, and saves it."""
        config, settings = self.config, self.config.reward
        groups = [*(read_preferences(path) for path in self.state.preferences), preferences]
        apart = held_out_prompts([p for group in groups for p in group], settings.held_out, config.seed)
        pairs, held_out = split(merge(*groups), apart)
        start = config.reward_model if settings.start == "backbone" else str(self.state.reward_model)
        train_reward_model(start, weighted(pairs, settings.new_pair_weight), settings, output, work_dir, seed, held_out)


@dataclass(frozen=True)
class RefineFull:
    """Refinement of the full model: minutes a cell, where a head takes milliseconds."""

    work: RunWork
    pool: AnswerSet
    held_out: AnswerSet

    def __call__(self, labels: Sequence[Label], seed: int) -> np.ndarray:
        """Rewards of the held-out answers under the refined model."""
        if not labels and not self.work.state.preferences:
            return self.held_out.rewards  # nothing to train on: the proxy as it is
        self.work.scratch.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.work.scratch))
        try:
            (folder / "work").mkdir()
            self.work.train(self.work.preferences(self.pool, labels), folder / "model", folder / "work", seed)
            scorer = load_scorer(str(folder / "model"), self.work.config.cost_model)
            return np.concatenate([np.asarray(r) for r in score_rows(scorer, self.held_out.rows)])
        finally:
            shutil.rmtree(folder, ignore_errors=True)


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
