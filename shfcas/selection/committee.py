"""Strategies that ask a committee: reward models that learned from the same data and differ where it says little.

They read the column `member_rewards`, one list of M rewards an answer. The members' differences between two
answers are free of the offset that Bradley-Terry training leaves each member for each prompt.
"""

import random
from collections.abc import Iterator

import numpy as np

from shfcas.selection.pairing import pair_positions, scored_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.utils.errors import UserError
from shfcas.utils.seeds import derive_seed

DIGITS = 12  # scores that are equal but for rounding are equal
TRIES = 30  # draws of a second member whose favourite is another answer


def member_rewards(row: Row) -> np.ndarray:
    """The rewards of one prompt's answers by each member, (N, M).

    Raises:
        UserError: there is one member, or their number differs between answers.
    """
    counts = {len(rewards) for rewards in row["member_rewards"]}
    if len(counts) > 1 or min(counts) < 2:
        raise UserError(
            f"prompt {row['prompt_id']!r}: column member_rewards has {', '.join(map(str, sorted(counts)))} rewards an "
            "answer; expected the same number for all, at least 2"
        )
    return np.array(row["member_rewards"], float)


def _differences(row: Row) -> np.ndarray:
    """By how much each member prefers the first answer of each pair, (C(N, 2), M)."""
    rewards = member_rewards(row)
    firsts, seconds = pair_positions(len(rewards))
    return rewards[firsts] - rewards[seconds]


def _preferences(row: Row) -> np.ndarray:
    """The Bradley-Terry probability that the first answer is better, by each member, (C(N, 2), M)."""
    return 0.5 + 0.5 * np.tanh(_differences(row) / 2)


def _entropy(p: np.ndarray) -> np.ndarray:
    """Of a coin that falls on one side with probability p, in nats."""
    p = np.clip(p, 1e-300, 1 - 2**-53)
    return -p * np.log(p) - (1 - p) * np.log1p(-p)


def disagreement(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs that the greatest share of members orders otherwise than the others do, at most one half.

    Query by committee (Seung, Opper and Sompolinsky 1992). A member with equal rewards gives half a vote to each side.
    Few members leave many pairs equal; of those, prompts take turns in a random order.
    """
    votes = (np.sign(_differences(row)).mean(axis=1) + 1) / 2
    return scored_pairs(row, np.minimum(votes, 1 - votes).round(DIGITS), seed)


def bald(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs whose label says most about which member is right.

    The score is the mutual information, in nats, of the Bradley-Terry label and the member: the entropy of the mean
    probability less the mean entropy (Houlsby et al. 2011, arXiv 1112.5745). It is high where members are sure and
    contradict each other, and low where all of them are undecided.
    """
    p = _preferences(row)
    return scored_pairs(row, (_entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)).round(DIGITS), seed)


def infomax(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs whose Bradley-Terry probability varies most over the members.

    Infomax of Dwaracherla et al. 2024 (arXiv 2402.00396), with the members in the place of draws from an epistemic
    network; the variance is the unbiased one. They take the best pair of each prompt as it comes; here the best
    pairs of all prompts compete.
    """
    return scored_pairs(row, _preferences(row).var(axis=1, ddof=1).round(DIGITS), seed)


def double_thompson(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """The favourites of two members drawn at random: answers that may well be the best.

    Double Thompson sampling (Wu and Liu 2016, arXiv 1604.07101) as Dwaracherla et al. 2024 (arXiv 2402.00396) have
    it for language models. A member is drawn, and its favourite is one answer; members are drawn again until one
    has another favourite, at most 30 times, and after that the other answer is any. So many draws are made as there
    are answers; a pair that was drawn before is not asked about again. Prompts take turns in a random order. All
    draws follow from the seed and the prompt.
    """
    prompt, rewards = row["prompt_id"], member_rewards(row)
    answers, members = rewards.shape
    favourites = rewards.argmax(axis=0).tolist()
    differ = len(set(favourites)) > 1
    rng = random.Random(derive_seed("double thompson", seed, prompt, bits=63))
    chance = derive_seed("double thompson prompts", seed, prompt, bits=64)
    seen: set[frozenset[int]] = set()
    for _ in range(answers):
        first = second = favourites[rng.randrange(members)]
        for _ in range(TRIES if differ else 0):
            second = favourites[rng.randrange(members)]
            if second != first:
                break
        if second == first:
            second = (first + 1 + rng.randrange(answers - 1)) % answers
        pair = frozenset((first, second))
        if pair not in seen:
            yield (len(seen), chance, prompt), Comparison(prompt, first, second)
            seen.add(pair)
