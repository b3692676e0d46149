"""Best-of-n: keeps the answer with the highest reward out of every n, without training the policy."""

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
    """Returns the positions of the best of every n consecutive rewards; of equal rewards, the first.

    Raises:
        ValueError: the number of rewards is not a multiple of n, or a reward is NaN.

    >>> best_of_n([0.1, 0.7, 0.3, 0.3], 2)
    [1, 2]
    """
    if n < 1 or len(rewards) % n:
        raise ValueError(f"rewards: expected a multiple of n={n} answers, got {len(rewards)}")
    if any(math.isnan(reward) for reward in rewards):
        raise ValueError("rewards: expected numbers, got NaN; there is no best answer")
    return [max(range(start, start + n), key=rewards.__getitem__) for start in range(0, len(rewards), n)]


def kl_bound(n: int) -> float:
    """Returns log n - (n - 1) / n, an upper bound of the KL divergence, in nats, of best-of-n from the policy.

    Stiennon et al. 2020 (arXiv 2009.01325) give it as the KL. Beirami et al. 2024 (arXiv 2401.01879) show that it is
    an upper bound. It is the exact KL if no answer is likely enough to be sampled twice.

    >>> round(kl_bound(4), 4), kl_bound(1)
    (0.6363, 0.0)
    """
    return math.log(n) - (n - 1) / n


def keep_best(candidates: CandidateTable, rewards: Sequence[Sequence[float]], n: int) -> CandidateTable:
    """Returns the table with only the best of every n answers of each prompt, in order, in all list columns.

    Args:
        candidates: a table whose prompts each have a multiple of n answers.
        rewards: rewards to choose by, one list per prompt.
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
