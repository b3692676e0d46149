"""Measures of one rollout: conflict, and what the reward goes with."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shfcas.ops.functional import conflict_scores, kendall_tau

# The series that the monitor tests for growth.
SERIES = ("kendall_distance", "mean_abs_pacs", "reward_length", "reward_kl")


@dataclass(frozen=True)
class Answer:
    """One sampled answer with its reward.

    Attributes:
        prompt: key of the prompt.
        reward: its reward.
        length: its length, in tokens or characters.
        logprob: its log-probability under the policy that sampled it, or None.
        kl: its log-ratio to the reference policy, or None.
    """

    prompt: str
    reward: float
    length: float
    logprob: float | None = None
    kl: float | None = None


def measures(answers: Sequence[Answer]) -> dict[str, float]:
    """Returns the measures of a rollout; those whose columns are missing, or that are undefined, are left out.

    Orders are compared within a prompt, and averaged over the prompts. If no prompt has two answers, the rollout counts
    as one.

    - `kendall_distance`, `mean_abs_pacs`: conflict of rewards and log-probabilities
    - `reward_length`, `reward_kl`: Kendall's tau-b of rewards with lengths, and with log-ratios
    - `reward`, `reward_std`, `length`, `kl`: means over all answers, and the standard deviation

    Args:
        answers: of one rollout, with finite rewards.
    """
    found = {"answers": float(len(answers))}
    rewards = [answer.reward for answer in answers]
    found["reward"] = math.fsum(rewards) / len(rewards)
    found["reward_std"] = math.sqrt(math.fsum((r - found["reward"]) ** 2 for r in rewards) / len(rewards))
    found["length"] = math.fsum(answer.length for answer in answers) / len(answers)
    groups = defaultdict(list)
    for answer in answers:
        groups[answer.prompt].append(answer)
    rows = [group for group in groups.values() if len(group) > 1] or [list(answers)]
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    flat = [answer for row in rows for answer in row]
    x = torch.tensor([answer.reward for answer in flat], dtype=torch.float64)

    def taus(values: list[float]) -> torch.Tensor:
        return kendall_tau(x, torch.tensor(values, dtype=torch.float64), offsets=offsets)

    means = {"reward_length": taus([answer.length for answer in flat])}
    logprobs = [answer.logprob for answer in flat]
    if all(value is not None for value in logprobs):
        scores = conflict_scores(x, torch.tensor(logprobs, dtype=torch.float64), offsets=offsets)
        known = ~scores.degenerate
        means["kendall_distance"] = scores.kendall_distance[known]
        means["mean_abs_pacs"] = scores.mean_abs_pacs[known]
    ratios = [answer.kl for answer in flat if answer.kl is not None]
    if len(ratios) == len(flat):
        means["reward_kl"] = taus(ratios)
        found["kl"] = math.fsum(answer.kl or 0.0 for answer in answers) / len(answers)
    for name, values in means.items():
        values = values[values.isfinite()]
        if len(values):
            found[name] = values.mean().item()
    return found
