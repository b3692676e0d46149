"""The second opinion: soft labels for unlabelled pairs, from what reward model and policy say together.

Between two completions of a prompt, the arbiter (`shfcas.rewards.arbiter`) gives the probability that the first is
better. Each pair becomes a soft label for the training of the reward model. So the reward model learns what the policy
knows and it does not, also where no annotator was asked. Labels correct how far each of the two is trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shfcas.data.preferences import Preference
from shfcas.rewards.arbiter import ONE_GROUP, Arbiter, Pairs

Row = dict[str, Any]


def standard_scores(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Returns the z-scores of a row's rewards and of its policy scores, each of shape (N,).

    The second are the first less PACS. A column of equal values has z-scores of 0, as in PACS.

    Args:
        row: a row with `rewards` and `pacs`.
    """
    rewards = np.asarray(row["rewards"], np.float64)
    centred, deviation = rewards - rewards.mean(), rewards.std()
    z = np.zeros_like(centred) if deviation == 0 else centred / deviation
    return z, z - np.asarray(row["pacs"], np.float64)


@dataclass(frozen=True)
class Pool:
    """All pairs of a table's completions that differ in text, the earlier completion first.

    Attributes:
        pairs: the gaps of the n pairs, and their groups.
        row: the row of each pair, shape (n,).
        first: position of one completion in its row, shape (n,).
        second: position of the other, shape (n,).
    """

    pairs: Pairs
    row: np.ndarray
    first: np.ndarray
    second: np.ndarray


def pool_of(rows: Sequence[Row], groups: Sequence[str] | None = None) -> Pool:
    """Lists the pairs of scored rows.

    Args:
        rows: rows with `completions`, `rewards` and `pacs`; a row in which one is not finite has no pairs.
        groups: the group of each row; None puts all into one group.
    """
    where, gaps = [np.zeros((0, 3), np.int64)], [np.zeros((0, 2))]
    for number, row in enumerate(rows):
        scores = np.stack(standard_scores(row), axis=1)
        if not np.isfinite(scores).all():
            continue
        first, second = np.triu_indices(len(scores), 1)
        texts = np.unique(row["completions"], return_inverse=True)[1]
        differ = texts[first] != texts[second]
        first, second = first[differ], second[differ]
        where.append(np.stack([np.full_like(first, number), first, second], axis=1))
        gaps.append(scores[first] - scores[second])
    reward_gap, policy_gap = np.concatenate(gaps).T
    in_row, first, second = np.concatenate(where).T
    names = np.full(len(rows), ONE_GROUP) if groups is None else np.asarray(groups, dtype=str)
    return Pool(Pairs(reward_gap, policy_gap, names[in_row]), in_row, first, second)


def labelled_pairs(
    rows: Sequence[Row], labels: Sequence[Preference], groups: Sequence[str] | None = None
) -> tuple[Pairs, list[Preference]]:
    """Returns the labelled pairs, the chosen completion first, and the labels that are about these rows.

    Args:
        rows: rows with `prompt_id`, `rewards` and `pacs`.
        labels: verdicts about completions of the rows, by `prompt_id`, `chosen_index` and `rejected_index`.
        groups: the group of each row; None puts all into one group.
    """
    place = {row["prompt_id"]: number for number, row in enumerate(rows)}
    used, gaps, names = [], [np.zeros((0, 2))], []
    for label in labels:
        number = place.get(label.prompt_id)
        if number is None or min(label.chosen_index, label.rejected_index) < 0:
            continue
        scores = np.stack(standard_scores(rows[number]), axis=1)
        if not np.isfinite(scores).all():
            continue
        used.append(label)
        gaps.append(scores[label.chosen_index, None] - scores[label.rejected_index, None])
        names.append(ONE_GROUP if groups is None else groups[number])
    reward_gap, policy_gap = np.concatenate(gaps).T
    return Pairs(reward_gap, policy_gap, np.array(names, dtype=str)), used


def soft_labels(
    rows: Sequence[Row], pool: Pool, arbiter: Arbiter, *, per_prompt: int | None = None, seed: int = 0
) -> list[Preference]:
    """Returns a soft label for the pairs of the pool, the more probable completion as the chosen one.

    Args:
        rows: the rows of the pool, with `prompt_id`, `prompt` and `completions`.
        pool: their pairs.
        arbiter: the arbiter that judges them.
        per_prompt: pairs per prompt, drawn at random; None: all.
        seed: seed of the draw.
    """
    probability = arbiter.probability(pool.pairs)
    order = np.arange(len(probability))
    if per_prompt is not None:
        drawn = np.random.default_rng(seed).permutation(order)
        drawn = drawn[np.argsort(pool.row[drawn], kind="stable")]
        position = order - np.searchsorted(pool.row[drawn], pool.row[drawn])  # among the pairs of its row
        order = np.sort(drawn[position < per_prompt])
    labels = []
    for at in order.tolist():
        row, p = rows[pool.row[at]], float(probability[at])
        chosen, rejected = int(pool.first[at]), int(pool.second[at])
        if p < 0.5:
            chosen, rejected, p = rejected, chosen, 1 - p
        labels.append(
            Preference(
                row["prompt"],
                row["completions"][chosen],
                row["completions"][rejected],
                prompt_id=row["prompt_id"],
                chosen_index=chosen,
                rejected_index=rejected,
                source="second_opinion",
                probability=p,
            )
        )
    return labels


def sides(pairs: Pairs) -> dict[str, int]:
    """Counts which source labels sided with.

    Args:
        pairs: labelled pairs, the chosen completion first.

    Returns:
        Numbers of labels that agree with `both`, the `reward_model` alone, the `policy` alone, or `neither`. A gap of 0
        agrees with nothing.
    """
    reward, policy = pairs.reward_gap > 0, pairs.policy_gap > 0
    return {
        "both": int((reward & policy).sum()),
        "reward_model": int((reward & ~policy).sum()),
        "policy": int((~reward & policy).sum()),
        "neither": int((~reward & ~policy).sum()),
    }
