"""Score answers with a reward model and add the conflict columns: PACS, Kendall distance, tau-b.

Reads tables of any size in constant memory: Parquet files, folders, globs or URLs (s3://...). If the output is a
folder, an interrupted call resumes. `shfcas score -` reads and writes JSON lines.
"""

import sys
from dataclasses import dataclass, replace
from typing import Any

from shfcas.conflicts.columns import POLICY_SCORES
from shfcas.conflicts.contrasts import ContrastColumns
from shfcas.conflicts.streaming import score_lines, score_table
from shfcas.conflicts.summary import ConflictSummary
from shfcas.data.preferences import read_preferences
from shfcas.data.shards import SHARD_ROWS
from shfcas.engines import ENGINES, RayConfig, open_engine
from shfcas.rewards.laplace import HeadPosterior, LaplaceScorer, fit_laplace
from shfcas.rewards.scorers import TOO_LONG, TOO_LONG_HELP, RewardScorer, load_scorer
from shfcas.sampling.contrast import Principle
from shfcas.utils.config import Options, option, unexpected
from shfcas.utils.errors import UsageError
from shfcas.utils.text import visible

INPUTS, INPUTS_HELP = "input", "candidate tables [candidates.parquet]; - reads JSON lines from stdin, writes to stdout"

UNCERTAINTIES = ("none", "laplace")


@dataclass
class Config(Options):
    """`shfcas score`."""

    input: list[str] = option(
        lambda: ["candidates.parquet"], "candidate tables; - reads JSON lines from stdin", common=True
    )
    output: str = option(
        "conflicts.parquet", "table to write: a .parquet file, or a folder of resumable parts", common=True
    )
    reward_model: str | None = option(
        None, "reward model: a model, or module:function (none: the table has rewards)", common=True
    )
    cost_model: bool = option(False, "the reward model is a cost model: lower is better", common=True)
    too_long: str = option("cut", TOO_LONG_HELP, tuple(TOO_LONG))
    uncertainty: str = option(
        "none",
        "uncertainty of each reward of a single model, as reward_variances: laplace, of its last layer",
        UNCERTAINTIES,
        common=True,
    )
    preferences: str | None = option(
        None, "uncertainty laplace: the preferences that the reward model was trained on", common=True
    )
    uncertainty_members: int = option(
        0, "uncertainty laplace: heads to sample from its posterior, as member_rewards (0: none)", ge=0
    )
    policy_score: str = option(
        "logprob", "score of the policy that rewards are compared with", POLICY_SCORES, common=True
    )
    principles: list[Principle] = option(
        list,
        "policy_score contrast: pairs of opposite instructions (none: the table has the columns of contrasts)",
        common=True,
    )
    policy_score_model: str | None = option(None, "principles: causal model to ask, such as the policy", common=True)
    chat_template: str | None = option(None, "principles: chat template for a model without one (none: its own)")
    columns: list[str] | None = option(None, "columns to keep, comma-separated (none: all)")
    shard_rows: int = option(SHARD_ROWS, "approximate prompts per part of an output folder", ge=1)
    summary: bool = option(
        False, "print the distribution of conflicts, and the prompts of highest conflict", common=True
    )
    histogram: str | None = option(None, ".png or .svg file for histograms of conflicts (none: no plot)")
    engine: str = option("local", "where to run: in this process, or on a Ray cluster", ENGINES)
    ray: RayConfig = option(RayConfig, "engine ray: the cluster")


def run(config: Config) -> Any:
    """Scores tables and summarises the conflicts."""
    here = config.engine == "local"
    if config.input == ["-"] and not here:
        raise UsageError("engine: expected local for JSON lines, got ray; name files, folders or URLs")
    posterior = _posterior(config)
    scorer: RewardScorer | None = None
    if config.reward_model and here:
        if posterior:
            scorer = LaplaceScorer(config.reward_model, posterior, config.cost_model)
        else:
            scorer = load_scorer(config.reward_model, config.cost_model, config.too_long)
    contrasts = None
    if config.principles:
        if config.policy_score_model is None:
            raise UsageError("missing: policy_score_model; name the model to ask under the principles")
        contrasts = ContrastColumns(config.policy_score_model, config.principles, config.chat_template)
    if config.input == ["-"]:
        summary = score_lines(
            sys.stdin,
            sys.stdout,
            policy_score=config.policy_score,
            scorer=scorer,
            columns=config.columns,
            contrasts=contrasts,
        )
        _plot(config, summary)
        if config.summary:
            print(visible(summary.text()), file=sys.stderr)
        return None
    with open_engine(config.engine, config.ray) as engine:
        summary = score_table(
            config.input,
            config.output,
            policy_score=config.policy_score,
            scorer=scorer,
            columns=config.columns,
            shard_rows=config.shard_rows,
            reward_model=config.reward_model,
            cost_model=config.cost_model,
            too_long=config.too_long,
            posterior=posterior,
            contrasts=contrasts,
            engine=None if here else engine,
        )
    _plot(config, summary)
    if config.summary:
        return summary.text()
    return {
        "prompts": summary.prompts,
        "answers": summary.answers,
        "degenerate": summary.degenerate,
        "nan": summary.nan,
        "kendall_distance": summary.kendall_distance,
        "mean_abs_pacs": summary.mean_abs_pacs,
        "output": config.output,
    }


def _posterior(config: Config) -> HeadPosterior | None:
    """Returns the posterior of the reward model's last layer, if uncertainty is asked for."""
    if config.uncertainty == "none":
        return None
    if not config.reward_model or not config.preferences:
        raise UsageError(
            f"uncertainty: {config.uncertainty} needs reward_model and preferences; "
            "name the model and the file that it was trained on"
        )
    if config.uncertainty_members == 1:
        raise unexpected("uncertainty_members", "0 or at least 2", 1, "one head cannot disagree")
    posterior = fit_laplace(config.reward_model, read_preferences(config.preferences), config.cost_model)
    return replace(posterior, members=config.uncertainty_members)


def _plot(config: Config, summary: ConflictSummary) -> None:
    if config.histogram:
        from shfcas.report.plots import conflict_histograms

        conflict_histograms(summary, config.histogram)
