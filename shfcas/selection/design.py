"""Design of the strategy `arbiter`: the comparisons that tell most about which source to trust.

The arbiter (`shfcas.rewards.arbiter`) explains labels by the trust in the reward model and in the policy. A comparison
enters with its gaps: the difference of the z-scored rewards, and that of the z-scored policy scores. Both follow from
the columns `rewards` and `pacs`, because pacs = z(reward) - z(policy score).

A table of any size is read in constant memory. A first pass sums the second moments of the gaps of all pairs. They say
which errors of the trusts matter. A second pass keeps a pool: half of it are the pairs with the greatest information
on their own, half are random pairs. The design chooses within the pool.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shfcas.rewards.arbiter import ONE_GROUP, SPREAD, Arbiter, Pairs, prior_arbiter, smallest_variance
from shfcas.rewards.second_opinion import standard_scores
from shfcas.selection.pairing import pair_positions, scored_pairs
from shfcas.selection.protocol import Bounds, Comparison, Priority, Row

FIXED_POINT = 2.0**32  # sums of integers do not depend on the order of rows
DIGITS = 12  # scores are rounded, so that rounding errors break no ties

# By group: number of `pairs`; in fixed point the sums of squared `reward` and `policy` gaps, and of products, `cross`.
Moments = Counter[tuple[str, str]]


class Gaps(NamedTuple):
    """The gaps of one comparison, first answer minus second.

    Attributes:
        reward: difference of the z-scored rewards.
        policy: difference of the z-scored policy scores.
        group: the group of the prompt.
    """

    reward: float
    policy: float
    group: str


def arbiter(row: Row, bounds: Bounds, seed: int) -> Iterator[tuple[Priority, Comparison]]:
    """Ranks the pairs of a prompt by the information of their label about the two trusts; prompts take turns.

    With equal trust of 1/2 in both sources, the label of a pair with gaps r and p has the Fisher information
    q (1 - q) (r^2 + p^2) in total, where q = sigmoid((r + p) / 2). It is large where the sources are far apart and
    cancel each other: in conflict. This ranks the pool, from which `best_design` chooses.
    """
    reward, policy = standard_scores(row)
    firsts, seconds = pair_positions(row)
    r, p = reward[firsts] - reward[seconds], policy[firsts] - policy[seconds]
    open_share = 0.25 / np.cosh((r + p) / 4) ** 2
    for turn, (priority, comparison) in enumerate(
        scored_pairs(row, (open_share * (r * r + p * p)).round(DIGITS), seed)
    ):
        yield (turn, *priority), comparison


class Scores(NamedTuple):
    """The scores of one prompt's answers by both sources, from which the gaps of its comparisons follow.

    Attributes:
        reward: z-scored rewards.
        policy: z-scored policy scores.
        group: the group of the prompt.
    """

    reward: list[float]
    policy: list[float]
    group: str

    @classmethod
    def of_row(cls, row: Row, group_by: str | None) -> "Scores":
        """Returns the scores of a row."""
        reward, policy = standard_scores(row)
        return cls(reward.tolist(), policy.tolist(), group_of(row, group_by))

    def gaps(self, comparison: Comparison) -> Gaps:
        """Returns the gaps of a comparison of this prompt."""
        first, second = comparison.first, comparison.second
        return Gaps(self.reward[first] - self.reward[second], self.policy[first] - self.policy[second], self.group)


def as_pairs(found: Sequence[Gaps]) -> Pairs:
    """Returns gaps in the form that the arbiter reads."""
    return Pairs(
        np.array([gap.reward for gap in found], float),
        np.array([gap.policy for gap in found], float),
        np.array([gap.group for gap in found], str),
    )


def group_of(row: Row, group_by: str | None) -> str:
    """Returns the group of a prompt, or the only one if there is no grouping."""
    return ONE_GROUP if group_by is None else str(row[group_by])


def gap_moments(rows: Iterable[Row], group_by: str | None) -> Moments:
    """Sums the products of gaps over all pairs of answers; sums of parts of a table can be added.

    The squared gaps of z-scores sum to N^2 over the pairs of a prompt, and the products of both gaps to N z_r . z_p.
    """
    found: Moments = Counter()
    for row in rows:
        reward, policy = standard_scores(row)
        count, group = len(reward), group_of(row, group_by)
        for name, value in (
            ("pairs", count * (count - 1) // 2),
            ("reward", round(FIXED_POINT * count * float(reward @ reward))),
            ("policy", round(FIXED_POINT * count * float(policy @ policy))),
            ("cross", round(FIXED_POINT * count * float(reward @ policy))),
        ):
            found[group, name] += value
    return found


def moment_matrix(moments: Moments, groups: Sequence[str]) -> np.ndarray:
    """Returns the mean outer product of the arbiter's features over all pairs, (2 + G, 2 + G)."""
    pairs = sum(value for (_, name), value in moments.items() if name == "pairs")
    total = {
        name: sum(value for (_, other), value in moments.items() if other == name) / FIXED_POINT / pairs
        for name in ("reward", "policy", "cross")
    }
    reward, cross = (
        np.array([moments[group, name] / FIXED_POINT / pairs for group in groups]) for name in ("reward", "cross")
    )
    matrix = np.diag(np.concatenate([[total["reward"], total["policy"]], reward]))
    matrix[0, 1] = matrix[1, 0] = total["cross"]
    matrix[0, 2:] = matrix[2:, 0] = reward
    matrix[1, 2:] = matrix[2:, 1] = cross
    return matrix


def first_belief(moments: Moments) -> Arbiter:
    """Returns the arbiter before any label, with a term for each group of the table if there are several."""
    groups = sorted({group for group, _ in moments})
    return prior_arbiter(groups=groups, spread=SPREAD) if len(groups) > 1 else prior_arbiter()


def best_design(
    candidates: Sequence[tuple[str, Gaps]], moments: Moments, count: int, belief: Arbiter | None = None
) -> list[int]:
    """Chooses the comparisons after which the verdicts over the whole table are least uncertain.

    The criterion is the posterior variance of the arbiter's log-odds, averaged over all pairs of the table: a
    V-optimal design, chosen greedily (`shfcas.rewards.arbiter.most_informative`). Prompts take turns, because two
    labels about one prompt say less about others than the model believes.

    Args:
        candidates: prompt id and gaps of each comparison of the pool.
        moments: sums over the whole table.
        count: number of comparisons to choose.
        belief: the posterior after earlier labels; None: the prior.

    Returns:
        Positions of the chosen candidates, in order of choice.
    """
    belief = belief or first_belief(moments)
    pairs = as_pairs([found for _, found in candidates])
    prompts = [prompt for prompt, _ in candidates]
    return smallest_variance(belief, pairs, moment_matrix(moments, belief.groups), count, take_turns=prompts)
