"""Statistics shared by several packages."""

import math
from typing import Any


def wilson_interval(successes: float, trials: int) -> dict[str, Any]:
    """Returns a proportion with its 95 % score interval (Wilson 1927), which stays in [0, 1], also for few trials.

    Args:
        successes: number of successes, halves allowed (a tie is half a correct pair).
        trials: number of trials, at least 1.

    Returns:
        `mean`, `low`, `high`, and `count`, the number of trials.

    >>> {name: round(value, 3) for name, value in wilson_interval(8, 10).items()}
    {'mean': 0.8, 'low': 0.49, 'high': 0.943, 'count': 10}
    """
    z = 1.959963984540054
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return {"mean": share, "low": max(0.0, centre - half), "high": min(1.0, centre + half), "count": trials}
