"""Shared inputs of all cells of a comparison, and the refinement of one cell."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.compare.answers import AnswerSet
from shfcas.compare.cells import Bench, Cell, Label, RefineHead, head_bench, run_cell
from shfcas.compare.config import CompareConfig
from shfcas.compare.frozen import FrozenModel
from shfcas.compare.opinion import RefineOpinion
from shfcas.data.candidates import read_candidates, write_candidates
from shfcas.data.preferences import Preference, merge, read_preferences
from shfcas.feedback.annotation.schema import make_preference
from shfcas.pipeline.arbitration import judged
from shfcas.pipeline.content import Model, Source, scorer_source
from shfcas.pipeline.loop import Loop, State
from shfcas.pipeline.run_directory import RunDirectory, StageContext, flat_settings
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import score_rows
from shfcas.training.reward.config import ARBITRATE, KEEP, LABELS
from shfcas.training.reward.refine import train_on_groups
from shfcas.utils.files import content_hash

POOL, HELD_OUT, FEATURES = "pool.parquet", "round-0/evaluation.parquet", "features"


def prepare(directory: RunDirectory, loop: Loop, state: State, config: CompareConfig) -> "RunWork":
    """Makes the inputs that all cells share: the pool with gold rewards and, for heads, features."""
    conflicts = loop.score(state, loop.sample(state, "round-1"), "round-1")

    def add_gold(context: StageContext) -> None:
        table = read_candidates(conflicts)
        write_candidates(context.output, table.with_columns(gold=score_rows(loop.gold, table.rows())))

    directory.stage(POOL, add_gold, inputs={"conflicts": conflicts, "gold": scorer_source(config.gold)})
    if config.refine == "head":
        inputs: dict[str, Source] = {"pool": directory.path / POOL, "held_out": directory.path / HELD_OUT}
        inputs |= {f"preferences_{i}": path for i, path in enumerate(state.preferences)}
        inputs["reward_model"] = Model(state.reward_model)
        backbone = config.backbone()
        if backbone:
            inputs["backbone"] = Model(backbone)
        directory.stage(
            FEATURES,
            lambda c: write_features(c.output, directory.path, state, config),
            inputs=inputs,
            settings={"features": config.features, "cost_model": config.cost_model},
        )
    return RunWork(directory.path, config, state)


def write_features(output: Path, run: Path, state: State, config: CompareConfig) -> None:
    """Writes the features of all texts and of earlier pairs, and the weights of the head, as .npy files."""
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
    """Cells of a run directory; each process loads their shared inputs once.

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
        """Leaves out the tables, which each process loads itself."""
        return {"path": self.path, "config": self.config, "state": self.state}

    def selection(self, strategy: str) -> Any:
        """Returns the selection settings of a strategy."""
        settings = self.config.selection
        return replace(settings, strategy=strategy) if strategy in self.config.strategies else settings

    @property
    def scratch(self) -> Path:
        """Folder for the training of models; each cell deletes its own."""
        return self.path / ".cells"

    def inputs(self) -> dict[str, Any]:
        """Returns the content hashes of all that the cells read."""
        found: dict[str, Any] = {"pool": content_hash(self.path / POOL), "held_out": content_hash(self.path / HELD_OUT)}
        config = self.config
        if config.refine == "head":
            found["features"] = content_hash(self.path / FEATURES)
        used: dict[str, Any] = {"selection": config.selection, "reward": config.reward}
        names = ("refine", "features", "l2", "pool_share", "label_noise", "blind", "cost_model", "seed")
        used |= {name: getattr(config, name) for name in names}
        found["settings"] = flat_settings({**used, "evaluation.group_by": config.evaluation.group_by})
        return found

    @cached_property
    def bench(self) -> Bench:
        """Pool, held-out answers and refinement, shared by all cells."""
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
        made = head_bench(
            pool,
            held_out,
            earlier=arrays["earlier"],
            head=arrays["head"],
            l2=config.l2,
            new_pair_weight=config.reward.new_pair_weight,
            margins=arrays["margins"],
            **options,
        )
        settings, own = config.reward, config.reward.second_opinion
        if settings.refine == LABELS:
            return made
        assert isinstance(made.refine, RefineHead)
        opinion = RefineOpinion(
            pool,
            arrays["held_out"],
            made.refine.fit,
            arbitrate=settings.refine == ARBITRATE,
            trust=(own.reward_trust, own.policy_trust),
            group_by=own.group_by,
            label_weight=settings.new_pair_weight,
            earlier=float(own.old_pairs == KEEP),
        )
        return replace(made, refine=opinion)

    def preferences(self, pool: AnswerSet, labels: Sequence[Label]) -> list[Preference]:
        """Returns labels as preference records."""
        found = []
        for label in labels:
            row, first = pool.rows[label.prompt], int(pool.offsets[label.prompt])
            chosen, rejected = label.chosen - first, label.rejected - first
            found.append(make_preference(row, chosen, rejected, source="gold", annotator=self.config.gold, round=1))
        return found

    def train(
        self,
        preferences: Sequence[Preference],
        output: Path,
        *,
        work_dir: Path,
        seed: int,
        rows: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Refines the full model, as a run does, and saves it.

        Args:
            preferences: the labels of a cell.
            output: the folder of the model.
            work_dir: checkpoints.
            seed: seed of the training.
            rows: the pool, for the soft labels of a second opinion.
        """
        config, settings = self.config, self.config.reward
        start = config.reward_model if settings.start == "backbone" else str(self.state.reward_model)
        groups = [read_preferences(path) for path in self.state.preferences]
        if settings.refine != LABELS:
            model = str(self.state.reward_model)
            opinion = judged(rows, [], preferences, reward_model=model, settings=settings, seed=seed)
            groups = [opinion.soft_labels, *(groups if settings.second_opinion.old_pairs == KEEP else [])]
        train_on_groups(
            start,
            [*groups, preferences],
            settings=settings,
            output=output,
            work_dir=work_dir,
            seed=seed,
            split_seed=config.seed,
        )


@dataclass(frozen=True)
class RefineFull:
    """Refinement of the full model: minutes per cell, where a head takes milliseconds."""

    work: RunWork
    pool: AnswerSet
    held_out: AnswerSet

    def __call__(self, labels: Sequence[Label], seed: int) -> np.ndarray:
        """Returns the rewards of the held-out answers under the refined model."""
        if not labels and not self.work.state.preferences and self.work.config.reward.refine == LABELS:
            return self.held_out.rewards  # nothing to train on: the proxy as it is
        self.work.scratch.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.work.scratch))
        try:
            (folder / "work").mkdir()
            preferences = self.work.preferences(self.pool, labels)
            self.work.train(preferences, folder / "model", work_dir=folder / "work", seed=seed, rows=self.pool.rows)
            scorer = load_scorer(str(folder / "model"), self.work.config.cost_model)
            return np.concatenate([np.asarray(r) for r in score_rows(scorer, self.held_out.rows)])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
