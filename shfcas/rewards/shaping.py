"""Reward shaping: rewards relative to the rewards of reference answers to the same prompt."""

import math
from collections.abc import Sequence
from typing import Any

from shfcas.rewards.calls import call_reward
from shfcas.rewards.scorers import RewardScorer
from shfcas.rewards.table import score_rows
from shfcas.utils.config import unexpected
from shfcas.utils.errors import UserError


class ReferencedReward:
    """Reward compared with the rewards of reference answers to the same prompt.

    Bradley-Terry training does not determine how rewards compare across prompts, and this arbitrary offset is noise
    in a policy gradient. Reference answers, scored once by the same scorer, remove it.

    Args:
        scorer: scorer of the plain reward.
        references: rows with `prompt_id`, `prompt` and `completions`, such as those of a candidate table.
    """

    def __init__(self, scorer: RewardScorer, references: Sequence[dict[str, Any]]) -> None:
        self.scorer = scorer
        rewards = score_rows(scorer, references)
        self.references = {row["prompt_id"]: r for row, r in zip(references, rewards, strict=True)}

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        """Returns shaped rewards; the prompts of the column `prompt_id` must be among the references."""
        ids = columns.get("prompt_id", [])
        unknown = set(ids) - self.references.keys()
        if unknown or not ids:
            which = f"prompt {min(unknown)!r}" if unknown else "prompts without a prompt_id"
            raise UserError(f"no reference answers for {which}: sample all training prompts first")
        arguments = {"prompts": prompts, "completions": completions, **columns}
        rewards = call_reward(self.scorer, len(completions), arguments)
        return [None if r is None else self.compare(r, self.references[p]) for r, p in zip(rewards, ids, strict=True)]

    @staticmethod
    def compare(reward: float, references: list[float]) -> float:
        """Returns the shaped reward, given the rewards of the reference answers."""
        raise NotImplementedError


class CentredReward(ReferencedReward):
    """Reward minus the mean reward of the reference answers (Shen et al. 2024, arXiv 2403.07708).

    The subtracted value depends only on the prompt, so the optimum does not change.
    """

    __name__ = "centred_reward"

    @staticmethod
    def compare(reward: float, references: list[float]) -> float:
        """Returns the reward minus the mean of the references."""
        return reward - sum(references) / len(references)


class PreferenceAsReward(ReferencedReward):
    """Probability that an answer is preferred to a reference answer (PAR; Fu et al. 2025, arXiv 2502.18770).

    It lies in (0, 1) and saturates. So rewards far above the references, where a reward model is exploited, gain
    little. The optimum differs from that of the plain reward.
    """

    __name__ = "preference_as_reward"

    @staticmethod
    def compare(reward: float, references: list[float]) -> float:
        """Returns the mean over m of sigmoid(r - r_m)."""
        return sum(0.5 + 0.5 * math.tanh((reward - r) / 2) for r in references) / len(references)


SHAPINGS: dict[str, type[ReferencedReward]] = {"centre": CentredReward, "par": PreferenceAsReward}


def shaped_reward(scorer: RewardScorer, references: Sequence[dict[str, Any]], shaping: str) -> RewardScorer:
    """Returns the reward for training a policy.

    Args:
        scorer: scorer of the plain reward.
        references: rows with `prompt_id`, `prompt` and `completions`, including all training prompts.
        shaping: `none` (the scorer itself), `centre` (`CentredReward`) or `par` (`PreferenceAsReward`).

    Raises:
        UsageError: there is no such shaping.
    """
    if shaping == "none":
        return scorer
    if shaping not in SHAPINGS:
        raise unexpected("reward_shaping", f"one of none, {', '.join(SHAPINGS)}", shaping)
    return SHAPINGS[shaping](scorer, references)
