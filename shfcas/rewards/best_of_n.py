"""Best-of-n: the policy stays as it is, and of every n answers the one that the reward likes most is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shfcas.data.candidates import LIST_COLUMNS, CandidateTable
from shfcas.utils.config import Options, option


@dataclass
class BestOfNConfig(Options):
    """Choice among more answers instead of training."""

    n: int = option(
        4,
        "answers sampled for each one kept (Stiennon et al. 2020 show up to 64)",
        ge=2,
        remedy="with 1 there is nothing to choose from",
    )


def best_of_n(rewards: Sequence[float], n: int) -> list[int]:
    """Positions of the best of every n consecutive rewards; of equal ones the first.

    Raises:
        ValueError: the number of rewards is no multiple of n, or one of them is not a number.

    >>> best_of_n([0.1, 0.7, 0.3, 0.3], 2)
    [1, 2]
    """
    if n < 1 or len(rewards) % n:
        raise ValueError(f"{len(rewards)} answers cannot be divided into groups of {n}")
    if any(math.isnan(reward) for reward in rewards):
        raise ValueError("a reward is not a number, so there is no best answer")
    return [max(range(start, start + n), key=rewards.__getitem__) for start in range(0, len(rewards), n)]


def kl_bound(n: int) -> float:
    """Log n - (n - 1) / n: what the KL divergence, in nats, of best-of-n from the policy itself never exceeds.

    Stiennon et al. 2020 (arXiv 2009.01325) give it as the KL; Beirami et al. 2024 (arXiv 2401.01879) show that
    it is an upper bound, and the value itself where no answer is likely enough to be drawn twice.

    >>> round(kl_bound(4), 4), kl_bound(1)
    (0.6363, 0.0)
    """
    return math.log(n) - (n - 1) / n


def keep_best(candidates: CandidateTable, rewards: Sequence[Sequence[float]], n: int) -> CandidateTable:
    """The table with the best of every n answers of each prompt, in order; all columns that have one value an answer.

    Args:
        candidates: a table whose prompts each have a multiple of n answers.
        rewards: what to choose by, one list a prompt.
        n: the size of a group.

    Raises:
        ValueError: see `best_of_n`.
    """
    kept = [best_of_n(values, n) for values in rewards]
    names = [name for name in LIST_COLUMNS if name in candidates]
    return candidates.with_columns(
        **{
            name: [[row[i] for i in positions] for row, positions in zip(candidates.column(name), kept, strict=True)]
            for name in names
        }
    ).with_metadata(best_of_n=n)
