"""Rewards for the completions of a candidate table, in this process or on an engine."""

import math
from collections.abc import Sequence
from functools import partial
from statistics import fmean, variance
from typing import Any

from shfcas.data.candidates import CandidateTable
from shfcas.data.messages import completion_message
from shfcas.engines import Engine, Tick
from shfcas.rewards.calls import call_reward, describe_reward
from shfcas.rewards.laplace import LaplaceScorer
from shfcas.rewards.scorers import EnsembleScorer, RewardScorer, load_scorer
from shfcas.utils.errors import UserError
from shfcas.utils.progress import progress

BLOCK = 32  # prompts per task and per call of the scorer, as in `score_rows`


def answer_rewards(
    engine: Engine, scorer: str, rows: Sequence[dict[str, Any]], cost_model: bool = False, too_long: str = "cut"
) -> list[list[float]]:
    """Scores rows like `score_rows`, on workers that load the scorer by its name."""
    return _each(engine, scorer, rows, cost_model, too_long, members=False)[0]


def add_answer_rewards(
    engine: Engine, scorer: str, candidates: CandidateTable, cost_model: bool = False, too_long: str = "cut"
) -> CandidateTable:
    """Adds rewards like `add_rewards`, on workers that load the scorer by its name."""
    return with_rewards(candidates, _each(engine, scorer, candidates.rows(), cost_model, too_long, members=True))


def _each(
    engine: Engine, scorer: str, rows: Sequence[dict[str, Any]], cost_model: bool, too_long: str, members: bool
) -> list[list[list[float]]]:
    """Returns the rewards of the scorer, or of each of its members."""
    tasks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    bar = progress(total=len(rows), desc="scoring")
    blocks = list(engine.map(partial(_BlockScorer, scorer, cost_model, too_long, members), tasks, bar.update))
    bar.close()
    return [[row for block in member for row in block] for member in zip(*blocks, strict=True)]


class _BlockScorer:
    """Worker that scores a block of rows with one scorer, or with each member of an ensemble."""

    def __init__(self, name: str, cost_model: bool, too_long: str, members: bool) -> None:
        scorer = load_scorer(name, cost_model, too_long)
        self.scorers = scorer.members if members and isinstance(scorer, EnsembleScorer) else [scorer]

    def __call__(self, rows: Sequence[dict[str, Any]], tick: Tick) -> list[list[list[float]]]:
        rewards = [score_block(scorer, rows) for scorer in self.scorers]
        tick(len(rows))
        return rewards


def score_rows(scorer: RewardScorer, rows: Sequence[dict[str, Any]], block: int = 32) -> list[list[float]]:
    """Scores all answers of all rows; returns one list per row.

    Other scalar columns are passed to the scorer as keyword arguments, as in TRL.

    Args:
        scorer: called with the answers of `block` prompts at a time.
        rows: dictionaries with `prompt_id`, `prompt`, `completions`.
        block: prompts per call.

    Raises:
        UserError: the scorer failed, returned the wrong number of rewards, or a reward that is not a finite number.
    """
    starts = progress(range(0, len(rows), block), "scoring")
    return [row for start in starts for row in score_block(scorer, rows[start : start + block])]


def score_block(scorer: RewardScorer, rows: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Scores rows like `score_rows`, in a single call of the scorer."""
    answers = [(row, i) for row in rows for i in range(len(row["completions"]))]
    scalars = [
        name for name, value in rows[0].items() if name not in ("prompt", "completions") and not isinstance(value, list)
    ]
    arguments = {
        "prompts": [row["prompt"] for row, _ in answers],
        "completions": [completion_message(row["prompt"], row["completions"][i]) for row, i in answers],
        **{name: [row[name] for row, _ in answers] for name in scalars},
    }
    if isinstance(rows[0].get("completion_ids"), list):
        arguments["completion_ids"] = [row["completion_ids"][i] for row, i in answers]
    values = call_reward(scorer, len(answers), arguments)
    for (row, i), value in zip(answers, values, strict=True):
        if value is None or not math.isfinite(value):
            raise UserError(
                f"the reward of answer {i} of prompt {row['prompt_id']!r} is not a number but {value} "
                f"({row['completions'][i][:60]!r}); nothing was written: fix {describe_reward(scorer)} and run again"
            )
    flat = iter(values)
    return [[next(flat) for _ in row["completions"]] for row in rows]  # type: ignore[misc]


def add_rewards(candidates: CandidateTable, scorer: RewardScorer) -> CandidateTable:
    """Scores a candidate table and adds `rewards`; see `with_rewards` for the columns of an ensemble's members.

    A `LaplaceScorer` adds `reward_variances`, and `member_rewards` if its posterior has members.
    """
    rows = candidates.rows()
    if isinstance(scorer, LaplaceScorer):
        parts = [_uncertain(scorer, rows[start : start + BLOCK]) for start in range(0, len(rows), BLOCK)]
        columns = {name: [row for part in parts for row in part[name]] for name in (parts[0] if parts else ())}
        return with_rewards(candidates, [columns.pop("rewards", [])]).with_columns(**columns)
    members = scorer.members if isinstance(scorer, EnsembleScorer) else [scorer]
    return with_rewards(candidates, [score_rows(member, rows) for member in members])


def _uncertain(scorer: LaplaceScorer, rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Returns the rewards of some rows and their uncertainty, as columns."""
    read = []

    def keep_features(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        rewards, features = scorer.rewards_and_features(prompts, completions)
        read.append(features)
        return rewards

    rewards, posterior = score_block(keep_features, rows), scorer.posterior
    counts = [len(row) for row in rewards]
    columns: dict[str, list[Any]] = {"rewards": rewards, "reward_variances": posterior.variances(read[0], counts)}
    if posterior.members:
        columns["member_rewards"] = posterior.member_rewards(rewards, read[0], counts)
    return columns


def with_rewards(candidates: CandidateTable, each: Sequence[list[list[float]]]) -> CandidateTable:
    """Adds `rewards` to a candidate table, and for several scorers also `reward_variances` and `member_rewards`.

    The variance over the members is the unbiased one, so that a few members do not seem to agree too well. A single
    scorer drops these columns of an earlier ensemble.

    Args:
        candidates: a candidate table.
        each: per scorer (one, or each member of an ensemble) its rewards, one list per prompt.
    """
    if len(each) == 1:
        stale = [name for name in ("reward_variances", "member_rewards") if name in candidates]
        plain = CandidateTable(candidates.table.drop_columns(stale), candidates.metadata)
        return plain.with_columns(rewards=each[0])
    answers = [list(zip(*row, strict=True)) for row in zip(*each, strict=True)]
    return candidates.with_columns(
        rewards=[[fmean(rewards) for rewards in row] for row in answers],
        reward_variances=[[variance(rewards) for rewards in row] for row in answers],
        member_rewards=[[list(rewards) for rewards in row] for row in answers],
    )
