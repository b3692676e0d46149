"""Evaluate a policy on held-out prompts: gold and proxy reward, win rate, KL and conflict."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shfcas.data.candidates import read_candidates, read_prompts, write_candidates
from shfcas.data.formats import PromptColumn
from shfcas.engines import ENGINES, RayConfig, open_engine
from shfcas.evaluation.config import EvaluationConfig
from shfcas.evaluation.metrics import detection, summarize
from shfcas.pipeline.config import RunConfig
from shfcas.pipeline.policy_score import PolicyScore
from shfcas.rewards.best_of_n import keep_best, kl_bound
from shfcas.rewards.scorers import TOO_LONG, TOO_LONG_HELP, check_scorer
from shfcas.rewards.table import add_answer_rewards, answer_rewards
from shfcas.sampling.contrast import Principle
from shfcas.sampling.table import sample_policy
from shfcas.utils.config import option, with_default
from shfcas.utils.files import work_folder, write_json


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
        None, "evaluation table of the policy before training, for the win rate (none: no win rate)", common=True
    )
    reward_model: str = option("", "proxy reward: a model, or module:function", common=True)
    cost_model: bool = option(False, "the reward model is a cost model: lower is better")
    too_long: str = option("cut", TOO_LONG_HELP, tuple(TOO_LONG))
    gold: str = option("", "gold reward: a model, or module:function", common=True)
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
    engine: str = option("local", "where to run: in this process, or on a Ray cluster", ENGINES)
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")


def run(config: Config) -> dict[str, Any]:
    """Samples, scores and summarises."""
    output, n = Path(config.output), config.best_of_n
    sampling = config.evaluation.sampling
    check_scorer(config.gold)
    check_scorer(config.reward_model)
    before = read_candidates(config.before).column("gold") if config.before else None
    references = {"base_logprobs": config.base, "reference_logprobs": config.reference}
    with work_folder(output) as work_dir, open_engine(config.engine, config.ray) as engine:
        table = sample_policy(
            config.policy,
            read_prompts(config.prompts, config.columns()),
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
        model = config.policy_score_model or config.policy
        score = PolicyScore(config.policy_score, model, config.principles, config.chat_template)
        table = score.add_conflicts(table, engine)
        table = table.with_columns(gold=answer_rewards(engine, config.gold, table.rows()))
        write_candidates(output, table)
        metrics = summarize(table, table.column("gold"), before)
        if n > 1:  # adds the KL of best-of-n from its policy to the KL of that policy
            metrics |= {"best_of_n": n, "kl": metrics["kl"] + kl_bound(n)}
        metrics["detection"] = detection(table, table.column("gold"))
        write_json(output.with_suffix(".json"), metrics)
    return {**metrics, **metrics["detection"], "output": config.output}
