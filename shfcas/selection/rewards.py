"""Strategies based only on rewards: margins, an ensemble's variance, rejection sampling."""

from collections.abc import Iterator

import numpy as np

from shfcas.selection.pairing import pair_positions, scored_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.selection.rejection import rejection_sample
from shfcas.utils.seeds import derive_seed


def _margins(row: Row) -> np.ndarray:
    """Returns the absolute reward differences of all pairs, (C(N, 2),)."""
    rewards = np.array(row["rewards"], float)
    firsts, seconds = pair_positions(row)
    return np.abs(rewards[firsts] - rewards[seconds])


def reward_margin(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by reward difference, largest first: a label helps most where the model is confident but wrong.

    Muldrew et al. 2024 (arXiv 2402.08114) rank pairs this way, with DPO's implicit reward.
    """
    return scored_pairs(row, _margins(row), seed)


def least_margin(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by reward difference, smallest first, where the reward model is least certain.

    Uncertainty sampling (Lewis and Gale 1994, arXiv cmp-lg/9407020): Bradley-Terry probabilities closest to 0.5.
    """
    return scored_pairs(row, -_margins(row), seed)


def reward_variance(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by the sum of both variances over an ensemble (Gleave and Irving 2022, arXiv 2203.07472).

    The sum is the variance of the reward difference if the members' errors about both answers are independent. It
    includes disagreement about the prompt as a whole, which `infomax` and `bald` exclude.
    """
    variances = np.array(row["reward_variances"], float)
    firsts, seconds = pair_positions(row)
    return scored_pairs(row, variances[firsts] + variances[seconds], seed)


def rso(
    row: Row, bounds: Bounds, seed: int, *, rso_samples: int = 4, rso_beta: float = 0.5
) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs answers accepted by rejection sampling on their rewards (Liu et al. 2023, arXiv 2309.06657).

    Per prompt, `rso_samples` answers are accepted as if sampled from pi exp(reward / beta). Neighbours in the random
    order of acceptance form pairs. This is the paper's first-round ranking, with annotators instead of its ranking
    model. Prompts take turns in a random order.
    """
    prompt = row["prompt_id"]
    rng = np.random.default_rng(derive_seed("rso pairs", seed, prompt, bits=63))
    accepted = rejection_sample(row["rewards"], min(rso_samples, len(row["rewards"])), rso_beta, rng)
    chance = derive_seed("rso prompts", seed, prompt, bits=64)
    for turn, (first, second) in enumerate(zip(accepted[::2], accepted[1::2], strict=False)):
        yield (turn, chance, prompt), Comparison(prompt, first, second)
