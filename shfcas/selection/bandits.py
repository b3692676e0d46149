"""Strategies from duelling bandits: they read the reward of each answer and its uncertainty.

The columns are `rewards` r and `reward_variances` s^2, of an ensemble or of `shfcas score --uncertainty laplace`. The
interval of a reward is r - beta s to r + beta s, where beta is `confidence_beta`. The forms are those of
ActiveUltraFeedback (Melikidze et al. 2026, arXiv 2603.09692), where a pair's uncertainty is the sum of both answers',
and each prompt gives one pair. So here each prompt gives its first pair before any gives another one.
"""

import random
from collections.abc import Iterator

import numpy as np

from shfcas.selection.pairing import check_pairs, pair_positions, sampled_pairs, scored_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row
from shfcas.utils.seeds import derive_seed

TRIES = 30  # maximum draws of a second answer that differs from the first
DIGITS = 12  # scores are rounded, so that rounding errors break no ties


def rewards_and_widths(row: Row, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rewards of one prompt's answers and the half-widths of their intervals, each of shape (N,)."""
    return np.asarray(row["rewards"], float), beta * np.sqrt(np.asarray(row["reward_variances"], float))


def delta_ucb(
    row: Row, bounds: Bounds, seed: int, *, confidence_beta: float = 1.0
) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks pairs by the largest reward difference that their intervals allow: DeltaUCB of arXiv 2603.09692.

    The score of answers i and j is the greater of (r_i + beta s_i) - (r_j - beta s_j) and the same with i and j
    exchanged, that is |r_i - r_j| + beta (s_i + s_j). A clear difference gives a label with little noise. Prompts take
    turns in order of their largest score.
    """
    rewards, widths = rewards_and_widths(row, confidence_beta)
    firsts, seconds = pair_positions(row)
    scores = np.abs(rewards[firsts] - rewards[seconds]) + widths[firsts] + widths[seconds]
    for turn, (priority, comparison) in enumerate(scored_pairs(row, scores.round(DIGITS), seed)):
        yield (turn, *priority), comparison


def drts(row: Row, bounds: Bounds, seed: int, *, confidence_beta: float = 1.0) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs a plausible best answer with a plausible worst one: double reverse Thompson sampling of arXiv 2603.09692.

    Each draw samples the reward of every answer uniformly from its interval. The first answer has the highest reward in
    one draw, the second has the lowest in another draw. It is drawn again, at most 30 times, until it differs; failing
    that, it is a random one. There are as many pairs as answers; repeated pairs are dropped. Prompts take turns in a
    random order.
    """
    rewards, widths = (values.tolist() for values in rewards_and_widths(row, confidence_beta))
    check_pairs(row, len(rewards))  # as many draws as answers, each of all answers
    rng = random.Random(derive_seed("drts", seed, row["prompt_id"], bits=63))

    def drawn() -> list[float]:
        return [reward + width * rng.uniform(-1, 1) for reward, width in zip(rewards, widths, strict=True)]

    def best() -> int:
        values = drawn()
        return values.index(max(values))

    def worst() -> int:
        values = drawn()
        return values.index(min(values))

    return sampled_pairs(row, seed, "drts", rng=rng, first=best, second=worst, tries=TRIES)


def maxmin_lcb(
    row: Row, bounds: Bounds, seed: int, *, confidence_beta: float = 1.0
) -> Iterator[tuple[Priority, Comparison]]:
    """Pairs the answer of highest guaranteed advantage with its strongest rival: MaxMinLCB (Pasztor et al. 2024).

    Source: arXiv 2406.16745, as in arXiv 2603.09692. With the lower bound L_ij = r_i - r_j - beta (s_i + s_j) of an
    advantage, only answers that may be the best take part: those with r_i - r_j + beta (s_i + s_j) > 0 against every
    other. The first answer maximises min_j L_ij over them, and the second is the j of that minimum. If only one may be
    the best, the original compares it with itself; here its rival is the j of the smallest L_ij among all answers. For
    further pairs, the answers lead in order of their guaranteed advantage. Prompts take turns in a random order.
    """
    prompt = row["prompt_id"]
    rewards, widths = rewards_and_widths(row, confidence_beta)
    check_pairs(row, len(rewards))
    advantage, width = rewards[:, None] - rewards, widths[:, None] + widths
    itself = np.eye(len(rewards), dtype=bool)
    plausible = (itself | (advantage + width > 0)).all(axis=1)
    rivals = plausible if plausible.sum() > 1 else np.ones_like(plausible)
    lower = np.where(itself | ~rivals, np.inf, advantage - width)
    guaranteed = np.where(plausible, lower.min(axis=1), -np.inf)
    chance = derive_seed("maxmin_lcb prompts", seed, prompt, bits=64)
    seen: set[frozenset[int]] = set()
    for first in np.argsort(-guaranteed, kind="stable").tolist():
        second = int(lower[first].argmin())
        pair = frozenset((first, second))
        if plausible[first] and pair not in seen:
            yield (len(seen), chance, prompt), Comparison(prompt, first, second)
            seen.add(pair)
