"""Statistical rejection sampling: answers as if sampled from a policy optimised for the reward."""

from collections.abc import Sequence

import numpy as np


def rejection_sample(rewards: Sequence[float], num_samples: int, beta: float, rng: np.random.Generator) -> list[int]:
    """Accepts candidates from pi_ref so that they are approximately samples from pi_ref exp(r / beta).

    Candidates are visited in a random order, repeatedly until enough are accepted. Each is accepted, at most once, with
    probability exp((r - r_max) / beta), where r_max is the best reward among those left at the beginning of a pass
    (algorithm 1 of Liu et al. 2023). A small beta accepts the best candidates, a large beta any. More candidates per
    accepted one approximate the target better.

    Args:
        rewards: one per candidate.
        num_samples: number of candidates to accept.
        beta: the temperature, in units of the reward.
        rng: random number generator.

    Returns:
        Positions of the accepted candidates, in the order in which they were accepted.

    Raises:
        ValueError: there are fewer candidates than num_samples, or beta is not positive.
    """
    if num_samples > len(rewards):
        raise ValueError(f"num_samples: expected at most the number of candidates, {len(rewards)}, got {num_samples}")
    if beta <= 0:
        raise ValueError(f"beta: expected above 0, got {beta}")
    values = np.asarray(rewards, dtype=float)
    accepted: list[int] = []
    left = rng.permutation(len(values))
    while len(accepted) < num_samples:
        taken = rng.random(len(left)) < np.exp((values[left] - values[left].max()) / beta)
        accepted += left[taken].tolist()
        left = left[~taken]
    return accepted[:num_samples]
