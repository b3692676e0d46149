"""Evaluate a policy on held-out prompts: gold and proxy reward, win rate, KL and conflict.

With --before, the policy is compared with the one of an earlier evaluation of the same prompts: paired differences of
the gold reward and the win rate by gold, or the win rate in blind pairs that people or a language model judge
(--evaluation.judge human or judge).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from shfcas.data.candidates import CandidateTable, read_candidates, read_prompts, write_candidates
from shfcas.data.formats import PromptColumn
from shfcas.engines import ENGINES, RayConfig, open_engine
from shfcas.evaluation.blind_pairs import describe, judged_win_rate, make_pairs
from shfcas.evaluation.config import EvaluationConfig
from shfcas.evaluation.metrics import detection, summarize
from shfcas.evaluation.prompts import matching_rows
from shfcas.evaluation.statistics import mean_with_interval
from shfcas.feedback.annotation.config import settings_of_run
from shfcas.feedback.folder import FOLDER, make_folder, queue_name
from shfcas.feedback.human import HumanFeedback
from shfcas.feedback.judge.config import JudgeConfig
from shfcas.feedback.judge.source import JudgeFeedback
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.policy_score import PolicyScore
from shfcas.rewards.best_of_n import keep_best, kl_bound
from shfcas.rewards.scorers import TOO_LONG, TOO_LONG_HELP, check_scorer
from shfcas.rewards.table import add_answer_rewards, answer_rewards
from shfcas.sampling.contrast import Principle
from shfcas.sampling.table import sample_policy
from shfcas.utils.config import option, with_default
from shfcas.utils.errors import UsageError, UserError
from shfcas.utils.files import work_folder, write_json

logger = logging.getLogger(__name__)


@dataclass
class Config(PromptColumn):
    """`shfcas evaluate`."""

    policy: str = option("", "policy to evaluate", common=True)
    chat_template: str | None = option(
        None, "chat template for a policy without one: plain, or a Jinja file (none: the policy's own)"
    )
    base: str | None = option(None, "policy before training, for the KL (none: no KL)", common=True)
    reference: str | None = option(None, "reference model of policy_score logprob_ratio (none: no reference)")
    before: str | None = option(
        None, "evaluation table of the policy to compare with, on the same prompts (none: no comparison)", common=True
    )
    reward_model: str = option("", "proxy reward: a model, or module:function", common=True)
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    too_long: str = option("cut", TOO_LONG_HELP, tuple(TOO_LONG))
    gold: str | None = option(
        None, "gold reward: a model, or module:function (none: only with evaluation.judge human or judge)", common=True
    )
    prompts: str = option("", "held-out prompts: a file, org/name on the Hub, or module:function", common=True)
    best_of_n: int = option(1, "answers sampled for each one kept, the one of highest reward (1: all are kept)", ge=1)
    policy_score: str = with_default(RunConfig, "policy_score", "logprob")
    principles: list[Principle] = with_default(RunConfig, "principles", list)
    policy_score_model: str | None = with_default(RunConfig, "policy_score_model", None)
    output: str = option(
        "evaluation.parquet", "table of answers and scores to write; the metrics are beside it as .json", common=True
    )
    seed: int = option(0, "seed of the sampling")
    evaluation: EvaluationConfig = option(EvaluationConfig, "evaluation", common=True)
    judge: JudgeConfig = option(JudgeConfig, "evaluation.judge judge: the language model")
    folder: str = option(FOLDER, "evaluation.judge human: folder of the labels, as in shfcas annotate --output")
    engine: str = option("local", "where to run: in this process, or on a Ray cluster", ENGINES)
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")


def run(config: Config) -> dict[str, Any]:
    """Samples, scores and summarises."""
    output, n = Path(config.output), config.best_of_n
    sampling = config.evaluation.sampling
    _check(config)
    prompts = read_prompts(config.prompts, config.columns())
    before = _before(config, prompts)
    references = {"base_logprobs": config.base, "reference_logprobs": config.reference}
    with work_folder(output) as work_dir, open_engine(config.engine, config.ray) as engine:
        table = sample_policy(
            config.policy,
            prompts,
            config=replace(sampling, num_completions=n * sampling.num_completions),
            seed=config.seed,
            work_dir=work_dir,
            references={column: name for column, name in references.items() if name},
            chat_template=config.chat_template,
            engine=engine,
        )
        table = add_answer_rewards(engine, config.reward_model, table, config.cost_model, config.too_long)
        if n > 1:
            table = keep_best(table, table.column("rewards"), n)
        if config.evaluation.conflicts:
            model = config.policy_score_model or config.policy
            score = PolicyScore(config.policy_score, model, config.principles, config.chat_template)
            table = score.add_conflicts(table, engine)
        if config.gold:
            table = table.with_columns(gold=answer_rewards(engine, config.gold, table.rows()))
        write_candidates(output, table)
        metrics = _metrics(config, table, before)
        if before is not None and config.evaluation.judge != "gold":
            metrics["judged"] = _judged(config, before, table, work_dir)
        write_json(output.with_suffix(".json"), metrics)
    judged = metrics.get("judged", {})
    shown = {f"judged_{key}": judged[key] for key in ("win_rate", "asked", "answered") if key in judged}
    return {**metrics, **metrics.get("detection", {}), **shown, "output": config.output}


def _check(config: Config) -> None:
    """Checks what the judge needs, before any work.

    Raises:
        UserError: the gold reward, the table before, or a setting of the judge is missing or cannot be used.
    """
    judge = config.evaluation.judge
    if judge == "gold" and not config.gold:
        raise UsageError("missing: gold; name the gold reward, or set evaluation.judge to human or judge")
    if judge != "gold" and config.before is None:
        raise UsageError(f"missing: before, the evaluation that evaluation.judge {judge} compares with")
    if judge == "judge":
        JudgeFeedback(config.judge, Path(config.output).with_suffix(".judge.jsonl"))  # fails without a key
    if judge == "human":
        HumanFeedback.check(settings_of_run(config.folder))
        make_folder(config.folder)
    for name in (config.gold, config.reward_model):
        if name:
            check_scorer(name)


def _before(config: Config, prompts: Sequence[dict[str, Any]]) -> CandidateTable | None:
    """Reads the evaluation before, with its rows in the order of the prompts.

    Raises:
        UserError: it has other prompts, or no gold rewards to compare with.
    """
    if config.before is None:
        return None
    table = read_candidates(config.before)
    if config.gold and "gold" not in table:
        raise UserError(
            f"before: {config.before} has no gold rewards; make it with shfcas evaluate --gold {config.gold}"
        )
    sampled, sampling = table.metadata.get("sampling", {}), config.evaluation.sampling
    others = [
        f"{name} {sampled[name]}, here {getattr(sampling, name)}"
        for name in ("temperature", "top_p", "top_k", "max_new_tokens")
        if name in sampled and sampled[name] != getattr(sampling, name)
    ]
    if others:
        logger.warning(
            "before: its answers were sampled otherwise (%s), so differences are not of the policies alone; sample "
            "both in the same way",
            "; ".join(others),
        )
    return CandidateTable.from_rows(matching_rows(prompts, table.rows(), f"before ({config.before})"))


def _metrics(config: Config, table: CandidateTable, before: CandidateTable | None) -> dict[str, Any]:
    """Computes the metrics; with gold rewards also the differences to those before, paired over the prompts."""
    gold = table.column("gold") if config.gold else None
    earlier = before.column("gold") if config.gold and before is not None else None
    metrics = summarize(table, gold, earlier)
    if gold is not None and earlier is not None:
        differences = [float(np.mean(new) - np.mean(old)) for new, old in zip(gold, earlier, strict=True)]
        metrics["gold_difference"] = mean_with_interval(differences)
    if config.best_of_n > 1:  # adds the KL of best-of-n from its policy to the KL of that policy
        metrics |= {"best_of_n": config.best_of_n, "kl": metrics["kl"] + kl_bound(config.best_of_n)}
    if gold is not None and config.evaluation.conflicts:
        metrics["detection"] = detection(table, gold)
    return metrics


def _judged(config: Config, before: CandidateTable, table: CandidateTable, work_dir: Path) -> dict[str, Any]:
    """Has people or a language model compare the answers with those before, as blind pairs."""
    judge = config.evaluation.judge
    pairs = make_pairs(before, table, config.evaluation.num_comparisons, config.seed)
    source: HumanFeedback | JudgeFeedback
    if judge == "judge":
        source = JudgeFeedback(config.judge, work_dir / "judge.jsonl")
    else:
        name = queue_name(config.output)
        source = HumanFeedback(Path(config.folder), name, settings=settings_of_run(config.folder), seed=config.seed)
    result = {"judge": judge, **judged_win_rate(pairs, source, 1)}
    if isinstance(source, JudgeFeedback):
        result["report"] = source.report
    logger.info("%s", describe(result))
    return result
