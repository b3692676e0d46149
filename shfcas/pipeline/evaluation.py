"""Step 8 of the method: gold rewards, metrics and blind comparisons of a policy's answers to held-out prompts.

The stages have the form of the steps in `shfcas.pipeline.steps`, whose `sample` makes the answers.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import CandidateTable, read_candidates, write_candidates
from shfcas.engines import Engine
from shfcas.evaluation.blind_pairs import describe, judged_win_rate, make_pairs
from shfcas.evaluation.metrics import detection, grouped, ranking_accuracy, summarize
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.pipeline.content import Source, scorer_source
from shfcas.pipeline.policy_score import PolicyScore
from shfcas.pipeline.run_directory import RunDirectory, StageContext
from shfcas.pipeline.steps import ModelName, with_rewards
from shfcas.rewards.best_of_n import keep_best, kl_bound
from shfcas.rewards.table import answer_rewards
from shfcas.utils.files import read_json, write_json

logger = logging.getLogger(__name__)


def score_held_out(
    run: RunDirectory,
    output: str,
    *,
    candidates: Path,
    proxy: ModelName,
    reward_model: ModelName,
    gold: str | None,
    best_of_n: int,
    cost_model: bool,
    too_long: str,
    policy_score: PolicyScore | None,
    engine: Engine,
) -> Path:
    """Adds gold rewards, proxy rewards and conflicts to held-out answers.

    Args:
        run: the run directory.
        output: the table to write.
        candidates: answers to the held-out prompts.
        proxy: the reward model whose rewards and conflicts are measured, the same for all policies of a run.
        reward_model: with best-of-n, the current reward model, which chooses the answers to keep.
        gold: the gold reward: a model, or `module:function`; None adds none.
        best_of_n: number of answers of which the best is kept; 1 keeps all.
        cost_model: the reward models are cost models: lower is better.
        too_long: what happens to an answer beyond a reward model's limit.
        policy_score: the policy's score that rewards are compared with; None adds no conflicts.
        engine: where the answers are scored.
    """

    def make(context: StageContext) -> None:
        table = read_candidates(candidates)
        if best_of_n > 1:
            rewards = answer_rewards(engine, str(reward_model), table.rows(), cost_model, too_long)
            table = keep_best(table, rewards, best_of_n)
        table = with_rewards(table, proxy, cost_model=cost_model, too_long=too_long, engine=engine)
        if policy_score:
            table = policy_score.add_conflicts(table, engine)
        if gold:
            table = table.with_columns(gold=answer_rewards(engine, gold, table.rows()))
        elif "gold" in table:  # a column of the prompts, which is not the gold reward of an answer
            table = CandidateTable(table.table.drop_columns(["gold"]), table.metadata)
        write_candidates(context.output, table)

    inputs: dict[str, Source] = {"candidates": candidates, "proxy": scorer_source(proxy)}
    settings = {"cost_model": cost_model, "too_long": too_long, "rl.best_of_n.n": best_of_n}
    settings["evaluation.conflicts"] = policy_score is not None
    if policy_score:
        inputs |= policy_score.inputs()
        settings |= policy_score.settings()
    if gold:
        inputs["gold"] = scorer_source(gold)
    if best_of_n > 1:
        inputs["reward_model"] = scorer_source(reward_model)
    return run.stage(output, make, inputs=inputs, settings=settings)


def measure(
    run: RunDirectory,
    output: str,
    *,
    answers: Path,
    before: Path,
    reward_model: ModelName,
    best_of_n: int,
    group_by: str | None,
    cost_model: bool,
    too_long: str,
    engine: Engine,
) -> Path:
    """Measures a policy on its scored held-out answers, and the current reward model on the first policy's.

    Without gold rewards in the answers, whatever needs them is left out: gold reward, win rate, detection, the
    reward model's accuracy and the metrics of groups. So is conflict where it was not measured.

    Args:
        run: the run directory.
        output: the metrics to write. The report of a language model that labelled
            comparisons is taken from the same folder.
        answers: the scored answers of the policy.
        before: those of the policy before the first round, for the win rate and the reward model's accuracy.
        reward_model: the current reward model.
        best_of_n: number of answers of which each kept one is the best.
        group_by: a column of the prompts by whose values some metrics are also reported.
        cost_model: the reward model is a cost model: lower is better.
        too_long: what happens to an answer beyond the reward model's limit.
        engine: where answers are scored.
    """

    def make(context: StageContext) -> None:
        table, base = read_candidates(answers), read_candidates(before)
        gold, base_gold = (scored.column("gold") if "gold" in scored else None for scored in (table, base))
        metrics = summarize(table, gold, base_gold)
        if best_of_n > 1:
            # The KL of the policy itself is in the metrics already; this is that of best-of-n from the policy.
            metrics |= {"best_of_n": best_of_n, "kl": metrics["kl"] + kl_bound(best_of_n)}
        if gold is not None and base_gold is not None:
            if "pacs" in table:
                metrics["detection"] = detection(table, gold)
            rewards = answer_rewards(engine, str(reward_model), base.rows(), cost_model, too_long)
            accuracy = [ranking_accuracy(*pair) for pair in zip(rewards, base_gold, strict=True)]
            metrics["pair_accuracy"] = float(np.nanmean(accuracy))
            if group_by:
                groups = grouped(table.rows(), group_by)
                metrics["groups"] = {name: _means(gold, accuracy, positions) for name, positions in groups.items()}
        judge = (run.path / output).with_name("judge.json")
        if judge.exists():
            metrics["judge"] = read_json(judge)
        write_json(context.output, metrics)

    return run.stage(
        output,
        make,
        inputs={"answers": answers, "before": before, "reward_model": scorer_source(reward_model)},
        settings={
            "evaluation.group_by": group_by,
            "cost_model": cost_model,
            "too_long": too_long,
            "rl.best_of_n.n": best_of_n,
        },
    )


def pair_answers(run: RunDirectory, output: str, *, base: Path, policy: Path, count: int) -> Path:
    """Pairs held-out answers of a policy with those of the base, in random order.

    Args:
        run: the run directory.
        output: the table of pairs to write, see `shfcas.evaluation.blind_pairs.make_pairs`.
        base: a table with answers of the base.
        policy: a table with answers of the policy.
        count: maximum number of pairs.
    """

    def make(context: StageContext) -> None:
        pairs = make_pairs(read_candidates(base), read_candidates(policy), count, context.seed)
        write_candidates(context.output, pairs)

    settings = {"evaluation.num_comparisons": count, "seed": run.seed}
    return run.stage(output, make, inputs={"base": base, "policy": policy}, settings=settings)


def compare_blindly(
    run: RunDirectory,
    output: str,
    *,
    pairs: Path,
    number: int,
    judge: str,
    source: Callable[[int], HumanFeedback | JudgeFeedback],
    reads: Mapping[str, Source],
    settings: Mapping[str, Any],
) -> Path:
    """Asks people or a language model about blind pairs, and writes the policy's win rate.

    Args:
        run: the run directory.
        output: the win rate to write: the values of `shfcas.evaluation.blind_pairs.win_rate`, `judge`, and of a
            language model its `report`.
        pairs: the table of pairs.
        number: the round, from 1.
        judge: `human` or `judge`.
        source: makes the source of verdicts from the stage's seed.
        reads: what the source itself reads, such as a judge's guidelines.
        settings: the part of the configuration that the source uses.
    """

    def make(context: StageContext) -> None:
        asked = source(context.seed)
        result = {"judge": judge, **judged_win_rate(read_candidates(pairs), asked, number)}
        if isinstance(asked, JudgeFeedback):
            result["report"] = asked.report
        logger.info("%s", describe(result))
        write_json(context.output, result)

    return run.stage(output, make, inputs={"pairs": pairs, **reads}, settings={"evaluation.judge": judge, **settings})


def _means(gold: list[list[float]], accuracy: list[float], positions: list[int]) -> dict[str, Any]:
    """Mean gold reward and pair accuracy of the prompts at these positions."""
    return {
        "gold_reward": float(np.mean([np.mean(gold[i]) for i in positions])),
        "pair_accuracy": float(np.nanmean([accuracy[i] for i in positions])),
    }
