"""Strategy `auto`: comparisons are labelled batch by batch, until another batch is not worth its labels.

The stage has the form of the steps in `shfcas.pipeline.steps` and takes the place of a selection. Its queue is what it
asked about, so the step that labels a queue finds every verdict given. `auto.json` beside it has what was believed
after each batch.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import read_candidates
from shfcas.data.preferences import Preference
from shfcas.feedback import FeedbackSource
from shfcas.feedback.human import HumanFeedback
from shfcas.pipeline.content import Source
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.rewards.second_opinion import Row, labelled_pairs, pool_of
from shfcas.selection import Comparison, SelectionConfig
from shfcas.selection.auto import Step, next_step
from shfcas.utils.errors import NothingSelected
from shfcas.utils.files import write_json, write_jsonl

logger = logging.getLogger(__name__)

REPORT = "auto.json"


def ask_in_batches(
    run: RunDirectory,
    output: str,
    *,
    conflicts: Path,
    number: int,
    selection: SelectionConfig,
    trust: tuple[float, float],
    source: Callable[[int], FeedbackSource],
    reads: Mapping[str, Source],
    settings: Mapping[str, Any],
) -> Path:
    """Steps 4 and 5 in turn: selects a batch, has it labelled, and decides whether and about what to ask next.

    Args:
        run: the run directory.
        output: the queue to write: all comparisons that were asked.
        conflicts: a scored candidate table.
        number: the round, from 1.
        selection: the budget, the size of a batch, and what it must be expected to add.
        trust: prior trust in the reward model and in the policy.
        source: makes the source of feedback from the stage's seed.
        reads: what the source itself reads.
        settings: the part of the configuration that the source uses.
    """

    def make(context: StageContext) -> None:
        table = read_candidates(conflicts)
        feedback, seen = source(context.seed), dict[tuple[str, frozenset[int]], Preference]()

        def judge(batch: Sequence[Comparison], asked: Sequence[Comparison]) -> list[Preference]:
            # People see one queue that grows; others are asked about the new comparisons alone.
            everything = isinstance(feedback, HumanFeedback)
            for label in feedback(asked if everything else batch, table, number):
                seen[label.prompt_id, frozenset((label.chosen_index, label.rejected_index))] = label
            return list(seen.values())

        seed = context.seed if selection.seed is None else selection.seed
        with feedback.page_kept_open() if isinstance(feedback, HumanFeedback) else nullcontext():
            asked, steps = session(table.rows(), judge, selection=selection, trust=trust, seed=seed)
        write_jsonl(context.output, [comparison.to_row() for comparison in asked])
        report = [{key: value for key, value in vars(step).items() if key != "chosen"} for step in steps]
        write_json((run.path / output).with_name(REPORT), {"steps": report, "summary": steps[-1].text()})

    trusts = dict(zip(("reward_trust", "policy_trust"), trust, strict=True))
    used = {"selection": selection, "reward.second_opinion": trusts, "seed": run.seed, **settings}
    return run.stage(output, make, inputs={"conflicts": conflicts, **reads}, settings=used)


def session(
    rows: Sequence[Row],
    judge: Callable[[Sequence[Comparison], Sequence[Comparison]], list[Preference]],
    *,
    selection: SelectionConfig,
    trust: tuple[float, float],
    seed: int,
) -> tuple[list[Comparison], list[Step]]:
    """Asks batch after batch, and returns what was asked and what was believed before each batch and at the end.

    Args:
        rows: scored rows.
        judge: labels a batch, its first argument; the second are all comparisons so far with it. Returns all labels.
        selection: the budget, the size of a batch, and what it must be expected to add.
        trust: prior trust in the reward model and in the policy.
        seed: seed of the random pairs.

    Raises:
        NothingSelected: there is no pair to ask about.
    """
    groups = None if selection.group_by is None else [str(row[selection.group_by]) for row in rows]
    pool, rng = pool_of(rows, groups), np.random.default_rng(seed)
    if not len(pool.pairs):
        raise NothingSelected("strategy auto: no prompt has two different answers with finite scores")
    order = rng.permutation(len(pool.pairs))
    measured, waiting = order[: selection.arbiter_pool], order.tolist()
    asked: list[Comparison] = []
    labels: list[Preference] = []
    steps: list[Step] = []
    while True:
        labelled, _ = labelled_pairs(rows, labels, groups)
        candidates = np.array(waiting[: selection.arbiter_pool], dtype=np.int64)
        step = next_step(
            labelled,
            np.ones(len(labelled)),
            pool.pairs[measured],
            pool.pairs[candidates],
            batch=selection.batch,
            left=selection.budget - len(asked),
            prompts=[rows[pool.row[at]]["prompt_id"] for at in candidates],
            trust=trust,
            tolerance=selection.worth,
        )
        steps.append(step)
        logger.info("%s", step.text())
        if step.action == "stop":
            return asked, steps
        count = min(selection.batch, selection.budget - len(asked), len(candidates))
        chosen = candidates[step.chosen] if step.chosen else candidates[:count]
        batch = [
            Comparison(rows[pool.row[at]]["prompt_id"], int(pool.first[at]), int(pool.second[at]), not step.chosen)
            for at in chosen
        ]
        asked += batch
        labels = judge(batch, asked)
        taken = set(chosen.tolist())
        waiting = [at for at in waiting if at not in taken]
