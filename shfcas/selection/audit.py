"""Audit: a share of the label budget for random pairs.

A strategy asks where it expects to learn, so its labels are no fair sample: they cannot say how good a reward model is,
and they mislead where the strategy's idea is wrong. Random pairs measure without bias.
"""

from collections.abc import Sequence
from dataclasses import replace

from shfcas.selection.protocol import Comparison


def audit_count(budget: int, share: float) -> int:
    """Returns the number of random pairs in a budget, rounded to the nearest whole number.

    >>> audit_count(10, 0.25), audit_count(8, 0.5), audit_count(3, 0)
    (3, 4, 0)
    """
    return int(budget * share + 0.5)


def interleave(audit: Sequence[Comparison], chosen: Sequence[Comparison]) -> list[Comparison]:
    """Merges the two parts of a queue, marks the audit, and spreads it evenly; the first comparison is of the audit.

    So whenever annotators stop, both parts have labels in about the right proportion.

    >>> a, b = Comparison("audit", 0, 1), Comparison("chosen", 0, 1)
    >>> [c.prompt_id for c in interleave([a, a], [b, b, b])]
    ['audit', 'chosen', 'audit', 'chosen', 'chosen']
    """
    total = len(audit) + len(chosen)
    places = {number * total // len(audit) for number in range(len(audit))}
    random, strategic = iter(audit), iter(chosen)
    return [replace(next(random), audit=True) if place in places else next(strategic) for place in range(total)]
