"""Statistical rejection sampling: which answers are as if drawn from a policy that follows the reward."""

from collections.abc import Sequence

import numpy as np


def rejection_sample(rewards: Sequence[float], num_samples: int, beta: float, rng: np.random.Generator) -> list[int]:
    """Chooses candidates so that those of pi_ref become, nearly, draws from pi_ref exp(r / beta).

    The candidates are visited in a random order, again and again until there are enough. Each is accepted, once,
    with probability exp((r - r_max) / beta), r_max being the best reward among those still there at the beginning
    of a pass (algorithm 1 of Liu et al. 2023). A small beta takes the best ones, a large one any; the more
    candidates there are for each accepted one, the closer to the target.

    Args:
        rewards: one a candidate.
        num_samples: how many to accept.
        beta: the temperature, in the unit of the rewards.
        rng: decides.

    Returns:
        Positions of the accepted candidates, in the order in which they were accepted.

    Raises:
        ValueError: there are fewer candidates than are to be accepted, or beta is not positive.
    """
    if num_samples > len(rewards):
        raise ValueError(f"{num_samples} candidates cannot be accepted of {len(rewards)}")
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
