"""Committee strategies: reward models trained on the same data disagree where the data say little.

They read the column `member_rewards`, one list of M rewards per answer. They use only differences between two answers:
Bradley-Terry training leaves each member an arbitrary offset per prompt.
"""

import random
from collections.abc import Iterator

import numpy as np

from shfcas.selection.pairing import pair_positions, sampled_pairs, scored_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

DIGITS = 12  # scores are rounded, so that rounding errors break no ties
TRIES = 30  # maximum draws of a second member with a different favourite


def member_rewards(row: Row) -> np.ndarray:
    """Returns the rewards of one prompt's answers by each member, (N, M).

    Raises:
        UserError: there is only one member, or the number of members differs between answers.
    """
    counts = {len(rewards) for rewards in row["member_rewards"]}
    if len(counts) > 1 or min(counts) < 2:
        raise UserError(
            f"prompt {row['prompt_id']!r}, column member_rewards: expected the same number of rewards for all answers, "
            f"at least 2, got {', '.join(map(str, sorted(counts)))}"
        )
    return np.array(row["member_rewards"], float)


def _differences(row: Row) -> np.ndarray:
    """Returns each member's reward difference, first minus second answer, of each pair, (C(N, 2), M)."""
    rewards = member_rewards(row)
    firsts, seconds = pair_positions(row)
    return rewards[firsts] - rewards[seconds]


def _preferences(row: Row) -> np.ndarray:
    """Returns the Bradley-Terry probability that the first answer is better, by each member, (C(N, 2), M)."""
    return 0.5 + 0.5 * np.tanh(_differences(row) / 2)


def _entropy(p: np.ndarray) -> np.ndarray:
    """Returns the entropy of a Bernoulli variable with probability p, in nats."""
    p = np.clip(p, 1e-300, 1 - 2**-53)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def disagreement(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by the size of the minority of members, at most one half, that orders them differently.

    Query by committee (Seung, Opper and Sompolinsky 1992). A member with equal rewards gives half a vote to each side.
    With few members many pairs tie; ties take one pair per prompt at a time, in a random order of prompts.
    """
    votes = (np.sign(_differences(row)).mean(axis=1) + 1) / 2
    return scored_pairs(row, np.minimum(votes, 1 - votes).round(DIGITS), seed)


def bald(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by how much their label tells about which member is right.

    The score is the mutual information, in nats, of the Bradley-Terry label and the member: the entropy of the mean
    probability minus the mean entropy (Houlsby et al. 2011, arXiv 1112.5745). It is high if members are confident and
    contradict each other, and low if all of them are undecided.
    """
    p = _preferences(row)
    return scored_pairs(row, (_entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)).round(DIGITS), seed)


def infomax(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by the variance of their Bradley-Terry probability over the members.

    Infomax of Dwaracherla et al. 2024 (arXiv 2402.00396), with members instead of samples of an epistemic network; the
    variance is the unbiased one. They take the best pair of each incoming prompt; here the pairs of all prompts
    compete.
    """
    return scored_pairs(row, _preferences(row).var(axis=1, ddof=1).round(DIGITS), seed)


def double_thompson(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs the favourite answers of two members sampled at random, which are plausible best answers.

    Double Thompson sampling (Wu and Liu 2016, arXiv 1604.07101), in the version of Dwaracherla et al. 2024 (arXiv
    2402.00396) for language models. The favourite of a sampled member is the first answer. Members are sampled again,
    at most 30 times, until one has a different favourite; failing that, the second answer is a random one. There are
    as many such pairs as answers; repeated pairs are dropped. Prompts take turns in a random order. All random numbers
    depend only on the seed and the prompt.
    """
    rewards = member_rewards(row)
    favourites = rewards.argmax(axis=0).tolist()
    rng = random.Random(derive_seed("double thompson", seed, row["prompt_id"], bits=63))

    def favourite() -> int:
        return favourites[rng.randrange(len(favourites))]

    tries = TRIES if len(set(favourites)) > 1 else 0
    return sampled_pairs(row, seed, "double thompson", rng=rng, first=favourite, second=favourite, tries=tries)
